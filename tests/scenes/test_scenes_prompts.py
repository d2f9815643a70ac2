from collections import Counter

from hypernoise.scenes.prompts import digest, evaluation_requests
from hypernoise.scenes.world import CATEGORIES


def test_the_evaluation_set_is_fixed():
    """If this fails, the benchmark has changed: measure the published rows again."""
    requests = evaluation_requests()
    assert digest(requests) == "f1147be2a9ce71256fd4abf8f97f37abdb50b43342bf8c1727e995cf94b7f8ab"
    assert Counter(r.category for r in requests) == dict.fromkeys(CATEGORIES, 50)
