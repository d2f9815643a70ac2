"""The scenes world in GenEval's terms: its requests as metadata, what its judge recognises as detections."""

from hypernoise.evaluation.geneval.rules import Detection, parse

SURE = 0.9  # what the judge recognises exceeds GenEval's thresholds; of several, the larger comes first


def as_detection(found, pixels):
    """`pixels`: of the whole picture."""
    x, y, width, height = found.x, found.y, found.width / 2, found.height / 2
    score = SURE + (1 - SURE) * found.area / pixels
    return Detection(found.shape, (x - width, y - height, x + width, y + height), score, found.color)


def as_request(asked):
    include = [
        {"class": thing.shape, "count": thing.count, **({"color": thing.color} if thing.color else {})}
        for thing in asked.things
    ]
    exclude = []
    if asked.category == "counting":
        exclude = [{"class": thing.shape, "count": thing.count + 1} for thing in asked.things]
    if asked.relation:  # GenEval names the object that another is placed by first
        include = [include[1], {**include[0], "position": [asked.relation, 0]}]
    source = {"tag": asked.category, "include": include, "prompt": asked.caption}
    return parse({**source, "exclude": exclude} if exclude else source, asked.caption)
