"""GenEval's rules, case by case on hand-made detections, and against a second derivation on random ones."""

import json

import numpy as np
import pytest

from hypernoise.errors import InputError
from hypernoise.evaluation.geneval.rules import (
    COLORS,
    RELATIONS,
    Detection,
    judge,
    kept,
    parse,
    parse_lines,
    relations,
)
from hypernoise.scenes.world import CATEGORIES


def found(name, left=0, top=0, size=10, score=0.95, color=None):
    return Detection(name, (left, top, left + size, top + size), score, color)


def asked(tag, *include, exclude=()):
    clauses = [dict(zip(("class", "count", "color", "position"), clause, strict=False)) for clause in include]
    clauses = [{key: value for key, value in clause.items() if value is not None} for clause in clauses]
    without = [{"class": name, "count": count} for name, count in exclude]
    return parse({"tag": tag, "include": clauses, "exclude": without, "prompt": "a prompt"}, "here")


def verdict(request, *detections):
    return judge(request, kept(detections, request.tag))


SINGLE = asked("single_object", ("dog", 1))
TWO = asked("two_object", ("dog", 1), ("cat", 1))
COUNT = asked("counting", ("dog", 2), exclude=[("dog", 3)])
COLOR = asked("colors", ("dog", 1, "red"))
POSITION = asked("position", ("dog", 1), ("cat", 1, None, ["left of", 0]))
ATTRIBUTES = asked("color_attr", ("dog", 1, "red"), ("cat", 1, "blue"))


@pytest.mark.parametrize(
    ("request_", "detections", "reasons"),
    [
        (SINGLE, [found("dog")], []),
        (SINGLE, [found("dog"), found("dog", 20), found("cat")], []),  # more than asked is fine
        (SINGLE, [found("cat")], ["expected dog >= 1, found 0"]),
        (SINGLE, [], ["expected dog >= 1, found 0"]),
        (SINGLE, [found("dog", score=0.3)], ["expected dog >= 1, found 0"]),  # the threshold must be exceeded
        (SINGLE, [found("dog", score=0.3001)], []),
        (TWO, [found("cat"), found("dog")], []),
        (TWO, [found("dog")], ["expected cat >= 1, found 0"]),
        (TWO, [], ["expected dog >= 1, found 0", "expected cat >= 1, found 0"]),
        (COUNT, [found("dog"), found("dog", 20)], []),
        (COUNT, [found("dog")], ["expected dog >= 2, found 1"]),
        (COUNT, [found("dog", 20 * i) for i in range(3)], ["expected dog < 3, found 3"]),
        (COUNT, [found("dog"), found("dog", 20), found("dog", 40, score=0.9)], []),  # below .9 nothing is counted
        (COUNT, [found("dog"), found("dog", 20, score=0.8)], ["expected dog >= 2, found 1"]),
        (COLOR, [found("dog", color="red")], []),
        (COLOR, [found("dog", color="blue")], ["expected red dog >= 1, found 0: 1 blue"]),
        # only the most confident dog counts
        (COLOR, [found("dog", color="red", score=0.5), found("dog", color="blue")],
         ["expected red dog >= 1, found 0: 1 blue"]),
        (COLOR, [found("dog", color="red"), found("dog", color="blue", score=0.5)], []),
        (COLOR, [found("cat", color="red")], ["expected dog >= 1, found 0"]),
        (POSITION, [found("dog", 50), found("cat", 0)], []),
        (POSITION, [found("dog", 0), found("cat", 50)], ["expected cat left of dog, found it right of"]),
        (POSITION, [found("dog", 0, 50), found("cat", 0, 0)], ["expected cat left of dog, found it above"]),
        (POSITION, [found("dog", 40, 0), found("cat", 0, 41)], []),  # on a diagonal both directions hold
        (POSITION, [found("dog", 1), found("cat", 0)],
         ["expected cat left of dog, found it neither left, right, above nor below"]),
        (POSITION, [found("cat")], ["expected dog >= 1, found 0", "nothing for the cat to be left of"]),
        (POSITION, [found("dog")], ["expected cat >= 1, found 0"]),
        (ATTRIBUTES, [found("dog", color="red"), found("cat", color="blue")], []),
        (ATTRIBUTES, [found("dog", color="blue"), found("cat", color="red")],
         ["expected red dog >= 1, found 0: 1 blue", "expected blue cat >= 1, found 0: 1 red"]),
        (ATTRIBUTES, [found("dog", color="red"), found("cat", color="red")],
         ["expected blue cat >= 1, found 0: 1 red"]),
    ],
)  # fmt: skip
def test_case_by_case(request_, detections, reasons):
    given = verdict(request_, *detections)
    assert given == reasons


def test_a_colour_of_several_names_those_that_were_found():
    request = asked("colors", ("dog", 3, "red"))
    dogs = [found("dog", 20 * i, color=color) for i, color in enumerate(["red", "blue", "blue"])]
    assert verdict(request, *dogs) == ["expected red dog >= 3, found 1: 1 red, 2 blue"]


def test_a_relation_holds_for_all_or_not():
    request = asked("position", ("dog", 2), ("cat", 1, None, ["left of", 0]))
    dogs = [found("dog", 50), found("dog", 90, score=0.94)]
    assert not verdict(request, found("cat", 0), *dogs)
    assert verdict(request, found("cat", 70), *dogs)


def test_an_object_of_the_wrong_colour_is_no_target():
    """The dog is there, but of another colour: a relation to it cannot hold."""
    request = asked("position", ("dog", 1, "red"), ("cat", 1, None, ["left of", 0]))
    given = verdict(request, found("dog", 50, color="blue"), found("cat", 0))
    assert given == ["expected red dog >= 1, found 0: 1 blue", "nothing for the cat to be left of"]


def test_at_most_sixteen_of_a_class_are_looked_at():
    dogs = [found("dog", 20 * i, score=0.91 + 0.001 * i) for i in range(20)]
    seen = kept(dogs, "counting")["dog"]
    assert [dog.box[0] for dog in seen] == [20 * i for i in range(19, 3, -1)]
    assert not verdict(asked("counting", ("dog", 1), exclude=[("dog", 17)]), *dogs)
    assert verdict(asked("counting", ("dog", 1), exclude=[("dog", 16)]), *dogs)


def test_the_margin_is_a_tenth_of_the_summed_sizes():
    """Two boxes 10 wide: an offset of 2 is all margin; of 4, half is left, which is not enough; of 4.1, more."""
    at = [relations(found("a", x), found("b", 0)) for x in (2, 4, 4.1, -4.1)]
    assert at == [set(), set(), {"right of"}, {"left of"}]
    assert relations(found("a", 0, 4.1), found("b")) == {"below"}
    assert relations(found("a", 0, -4.1), found("b")) == {"above"}
    # the length is the whole offset's: of the shortened one, 3 / hypot(3, 3) would be more than half
    assert relations(found("a", 5, 5), found("b")) == set()
    assert relations(found("a", 30, 30), found("b")) == {"right of", "below"}


def rederived(source, detections):
    """The published rules a second time: arrays of boxes, one test per clause, nothing shared with the package."""
    least = 0.9 if source["tag"] == "counting" else 0.3
    table = {}
    for name in {d.name for d in detections}:
        rows = np.array([[*d.box, d.score] for d in detections if d.name == name])
        colors = [d.color for d in detections if d.name == name]
        best = [i for i in np.argsort(-rows[:, 4]) if rows[i, 4] > least][:16]
        table[name] = (rows[best, :4], [colors[i] for i in best])
    empty, whole, faults = (np.zeros((0, 4)), []), [], []
    for clause in source["include"]:
        boxes, colors = (part[: clause["count"]] for part in table.get(clause["class"], empty))
        fault = None
        if len(boxes) < clause["count"]:
            fault = "count"
        elif "color" in clause and sum(c == clause["color"] for c in colors) != clause["count"]:
            fault = "color"
        elif "position" in clause:
            relation, number = clause["position"]
            if whole[number] is None:
                fault = "target"
            else:
                axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
                for a in boxes:
                    for b in whole[number]:
                        offset = (a[:2] + a[2:] - b[:2] - b[2:]) / 2
                        room = np.abs(offset) - 0.1 * (a[2:] - a[:2] + b[2:] - b[:2])
                        if not (sign * offset[axis] > 0 and room[axis] > 0.5 * np.sqrt((offset**2).sum())):
                            fault = "position"
        whole.append(None if fault else boxes)
        faults += [fault] if fault else []
    faults += ["excluded" for c in source.get("exclude", []) if len(table.get(c["class"], empty)[0]) >= c["count"]]
    return faults


KINDS = {"< ": "excluded", "nothing for": "target", ", found it": "position", ": ": "color", ">= ": "count"}


def kind(reason):
    return next(name for mark, name in KINDS.items() if mark in reason)


def random_case(rng):
    """A request of any category and detections near it: often nearly right, so that every rule gets to decide."""
    names = ["dog", "cat", "cup"]
    tag = CATEGORIES[rng.integers(6)]
    a, b = rng.permutation(names)[:2]
    number = int(rng.integers(1, 5)) if tag == "counting" else int(rng.choice([1, 1, 1, 2]))
    source = {"tag": tag, "include": [{"class": str(a), "count": number}], "prompt": "a prompt"}
    if tag in ("two_object", "position", "color_attr"):
        source["include"].append({"class": str(b), "count": 1})
    if tag in ("colors", "color_attr") or rng.random() < 0.1:
        for clause in source["include"]:
            clause["color"] = COLORS[rng.integers(2)]
    if tag == "position":
        source["include"][1]["position"] = [RELATIONS[rng.integers(4)], 0]
    if tag == "counting" or rng.random() < 0.1:
        source["exclude"] = [{"class": str(a), "count": number + 1}]
    detections = []
    for name in names:
        for _ in range(rng.choice([0, 1, 1, 2, 3, 4, 20], p=[0.1, 0.25, 0.25, 0.15, 0.1, 0.1, 0.05])):
            left, top = rng.uniform(0, 60, 2)
            wide, high = rng.uniform(5, 40, 2)
            score = rng.uniform(0.85, 1) if rng.random() < 0.7 else rng.uniform(0, 1)
            color = COLORS[0 if rng.random() < 0.6 else 1]
            detections.append(Detection(name, (left, top, left + wide, top + high), score, color))
    return source, detections


def test_the_rules_agree_with_a_second_derivation_on_random_detections():
    rng = np.random.default_rng(0)
    outcomes = {tag: {} for tag in CATEGORIES}
    for _ in range(2_000):
        source, detections = random_case(rng)
        given = verdict(parse(source, "here"), *detections)
        faults = rederived(source, detections)
        assert [kind(reason) for reason in given] == faults, (source, detections)
        for fault in faults or ["right"]:
            outcomes[source["tag"]][fault] = outcomes[source["tag"]].get(fault, 0) + 1
    assert all(seen.get("right", 0) > 20 for seen in outcomes.values()), outcomes
    decided = {"count": CATEGORIES, "color": ("colors", "color_attr"),
               "position": ("position",), "target": ("position",),
               "excluded": ("counting",)}  # fmt: skip
    assert all(outcomes[tag].get(fault, 0) > 4 for fault, tags in decided.items() for tag in tags), outcomes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": None}, "needs a 'tag' such as two_object and the 'prompt' to draw, not {'include'"),
        ({"prompt": " "}, "needs a 'tag' such as two_object and the 'prompt' to draw"),
        ({"include": []}, "there is nothing to judge by"),
        ({"include": "dog"}, "'include' or 'exclude' must list objects"),
        ({"include": [{"count": 1}]}, r"include\[0\] is {'count': 1}; it needs a 'class'"),
        ({"include": ["dog"]}, r"include\[0\] is 'dog'; it needs a 'class'"),
        ({"include": [{"class": "dog", "count": 0}]}, "a 'count' from 1"),
        ({"include": [{"class": "dog", "count": True}]}, "a 'count' from 1"),
        ({"include": [{"class": "dog", "count": 1, "color": "mauve"}]}, r"'mauve'.* a 'color' \(red, "),
        ({"include": [{"class": "dog", "count": 1, "position": ["left of", 0]}]}, "number of an earlier clause"),
        ({"include": [{"class": "dog", "count": 1, "position": "left of"}]}, "number of an earlier clause"),
        ({"include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["beside", 0]}]},
         r"include\[1\] is .* a 'position': \[left of | right of"),
        ({"exclude": [{"class": "dog"}]}, r"exclude\[0\] is {'class': 'dog'}; it needs a 'class' and a 'count'"),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_judged_by_is_refused_with_its_line(change, message):
    good = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}
    text = json.dumps(good) + "\n\n" + json.dumps({**good, **change}) + "\n"
    with pytest.raises(InputError, match=f"line 3: .*{message}|line 3: {message}"):
        parse_lines(text, "metadata")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "has no prompts"),
        ("a photo of a dog\n", "line 1 is not JSON"),
        ("[1]\n", "line 1: it needs a 'tag'"),
    ],
)
def test_invalid_metadata_files_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_lines(text, "metadata")
