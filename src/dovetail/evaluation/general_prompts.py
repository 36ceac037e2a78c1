"""Prompts of common things, for models that do not bring their own: what a fine-tuning may have forgotten is seen by them."""

GENERAL_PROMPTS = (
    "a photo of a cat on a sofa", "a photo of a dog in a park", "a bowl of fruit on a wooden table", "a red car on a street",
    "a bicycle leaning against a wall", "a house with a garden", "a sailing boat on the sea", "a snowy mountain at sunrise",
    "a portrait of an old man", "a woman with a hat", "a child with a balloon", "a slice of pizza on a plate",
    "a cup of coffee", "a bunch of flowers in a vase", "a horse in a field", "an elephant near a river", "a bird on a branch",
    "a train at a station", "an airplane in the sky", "a bridge over a river", "a city at night", "a forest in autumn",
    "a beach with palm trees", "a pair of shoes", "a guitar on a chair", "a stack of books", "a clock on a wall",
    "a watercolor painting of a village", "a pencil drawing of a tree", "two apples and a banana", "a green umbrella in the rain",
    "a cake with candles",
)  # fmt: skip
