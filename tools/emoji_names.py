"""The captions of the embedded model and the code points of their emoji, and the named grounds."""

from __future__ import annotations

# DDPO's `simple_animals` that have an emoji; the face where there is one (clearer when small).
TRAIN_CAPTIONS = {
    "cat": "1f431",
    "dog": "1f436",
    "horse": "1f434",
    "monkey": "1f435",
    "rabbit": "1f430",
    "zebra": "1f993",
    "spider": "1f577-fe0f",
    "bird": "1f426",
    "sheep": "1f411",
    "deer": "1f98c",
    "cow": "1f42e",
    "goat": "1f410",
    "lion": "1f981",
    "tiger": "1f42f",
    "bear": "1f43b",
    "raccoon": "1f99d",
    "fox": "1f98a",
    "wolf": "1f43a",
    "lizard": "1f98e",
    "beetle": "1fab2",
    "ant": "1f41c",
    "butterfly": "1f98b",
    "fish": "1f41f",
    "shark": "1f988",
    "whale": "1f433",
    "dolphin": "1f42c",
    "squirrel": "1f43f-fe0f",
    "mouse": "1f42d",
    "rat": "1f400",
    "snake": "1f40d",
    "turtle": "1f422",
    "frog": "1f438",
    "chicken": "1f414",
    "duck": "1f986",
    "goose": "1fabf",
    "bee": "1f41d",
    "pig": "1f437",
    "turkey": "1f983",
    "fly": "1fab0",
    "llama": "1f999",
    "camel": "1f42b",
    "bat": "1f987",
    "gorilla": "1f98d",
    "hedgehog": "1f994",
    "kangaroo": "1f998",
}

# Animals the model knows too, but which the default prompt set leaves for the report.
REPORT_CAPTIONS = {
    "elephant": "1f418",
    "panda": "1f43c",
    "penguin": "1f427",
    "koala": "1f428",
    "octopus": "1f419",
    "owl": "1f989",
    "crab": "1f980",
    "snail": "1f40c",
    "giraffe": "1f992",
    "unicorn": "1f984",
    "parrot": "1f99c",
    "flamingo": "1f9a9",
    "hamster": "1f439",
    "sloth": "1f9a5",
    "crocodile": "1f40a",
    "ladybug": "1f41e",
}

# What else it knows: food and plants, things, faces.
FOOD_CAPTIONS = {
    "apple": "1f34e",
    "banana": "1f34c",
    "strawberry": "1f353",
    "watermelon": "1f349",
    "pineapple": "1f34d",
    "carrot": "1f955",
    "broccoli": "1f966",
    "mushroom": "1f344",
    "avocado": "1f951",
    "pizza": "1f355",
    "hamburger": "1f354",
    "donut": "1f369",
    "cactus": "1f335",
    "sunflower": "1f33b",
    "tulip": "1f337",
    "tree": "1f333",
}
THING_CAPTIONS = {
    "car": "1f697",
    "rocket": "1f680",
    "boat": "26f5",
    "house": "1f3e0",
    "castle": "1f3f0",
    "clock": "23f0",
    "guitar": "1f3b8",
    "key": "1f511",
    "balloon": "1f388",
    "crown": "1f451",
    "snowman": "26c4",
    "pumpkin": "1f383",
    "gift": "1f381",
    "robot": "1f916",
    "ghost": "1f47b",
    "star": "2b50",
}
FACE_CAPTIONS = {
    "happy face": "1f604",
    "crying face": "1f62d",
    "angry face": "1f621",
    "sleeping face": "1f634",
    "cool face": "1f60e",
}

ANIMAL_CAPTIONS = TRAIN_CAPTIONS | REPORT_CAPTIONS
OTHER_CAPTIONS = FOOD_CAPTIONS | THING_CAPTIONS | FACE_CAPTIONS
CAPTIONS = ANIMAL_CAPTIONS | OTHER_CAPTIONS

# Grounds with a name: "a cat on a green ground". RGB in [0, 1].
GROUNDS = {
    "red": (0.85, 0.2, 0.2),
    "orange": (0.96, 0.6, 0.22),
    "yellow": (0.97, 0.88, 0.35),
    "green": (0.4, 0.75, 0.4),
    "blue": (0.3, 0.5, 0.9),
    "purple": (0.58, 0.36, 0.8),
    "pink": (0.97, 0.66, 0.8),
    "white": (0.96, 0.96, 0.96),
    "grey": (0.55, 0.56, 0.58),
    "black": (0.1, 0.1, 0.12),
}


def with_article(noun: str) -> str:
    """Returns the noun with "a" or "an".

    Example:
        >>> with_article("owl"), with_article("unicorn")
        ('an owl', 'a unicorn')
    """
    vowel = noun[0] in "aeiou" and not noun.startswith("uni")
    return f"{'an' if vowel else 'a'} {noun}"
