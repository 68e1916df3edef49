"""The words that needles are made of: keys to ask for, values to find. One token each in a tokenizer trained here."""

KEYS = (
    "anchor badger canyon dolphin ember falcon glacier harbor island jungle kettle lantern meadow nectar orchid "
    "pepper quarry ribbon saddle timber umbrella valley walnut yonder zephyr beacon cobalt dragon engine feather "
    "garden hammer"
).split()
"""Asked for in training and in the standard rows."""

UNSEEN_KEYS = "iceberg jasmine kitten lobster marble nutmeg oyster pigeon rocket sparrow tunnel violet".split()
"""Never seen in training: the harder row."""

VALUES = (
    "acorn almond amber apricot arrow aspen autumn bamboo banjo barley basil bison blossom bramble bronze buffalo "
    "butter cactus candle carbon cedar cherry chestnut cider cinnamon citrus clover coffee comet copper coral cotton "
    "cricket crimson crystal cypress daisy desert diamond eagle ebony emerald fennel fern finch flint forest fossil "
    "garlic ginger granite grape hazel heron hickory honey indigo iris ivory jade juniper koala lagoon lemon lilac "
    "linen lotus magnet mango maple mint moss mustard olive onyx opal otter panther papaya parrot peach pebble pine "
    "plum poppy prairie quartz raven river robin ruby saffron salmon sapphire silver spruce thistle topaz tulip turtle "
    "velvet willow"
).split()
"""What is to be found."""
