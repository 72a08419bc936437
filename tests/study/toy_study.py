"""A study of three arms, one of which differs in decoding only."""

README = """# Toy

<!-- results: written by python -m dflash.study report -->
<!-- end of results -->

## Verdict

Kept.
"""
TOY = {
    "title": "A toy",
    "question": "Does it run?",
    "published": "nothing",
    "minutes": 0.1,
    "seeds": [0, 1],
    "baseline": "plain",
    "arms": {
        "plain": ["draft=depth1"],
        "tree": ["draft=depth1", "verify=ddtree"],
        "tapped": ["draft=depth1", "taps=explicit", "draft.taps.layers=[0,2]", "objective=kl"],
    },
}
