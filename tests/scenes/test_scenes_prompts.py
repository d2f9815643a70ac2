from collections import Counter

from hypernoise.scenes.prompts import EVALUATION_VERSION, digest, evaluation_requests
from hypernoise.scenes.world import CATEGORIES


def test_the_evaluation_set_is_fixed():
    """If this fails, the benchmark has changed: raise EVALUATION_VERSION, and measure the published rows again."""
    assert EVALUATION_VERSION == 1
    requests = evaluation_requests()
    assert digest(requests) == "f1147be2a9ce71256fd4abf8f97f37abdb50b43342bf8c1727e995cf94b7f8ab"
    assert Counter(r.category for r in requests) == dict.fromkeys(CATEGORIES, 50)
