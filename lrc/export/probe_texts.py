"""English of six kinds on which an export is held against its student, written for this: 64 tokens of each count."""

TEXTS = (
    "The river rises in the hills, runs south for 140 miles and meets the sea near a small town. In 1897 a bridge "
    "was built there; it's still in use today, and nobody knows who paid for it. Its arches have stood in every "
    "flood. Below the bridge the water is slow and brown, and herons stand in the reeds on both banks. The old mill "
    "on the eastern side ground wheat until 1931, when a fire took the roof and the upper floor. A school class "
    "visits the ruin each spring, counts the swallows under the beams and writes the number on the wall: 12 in the "
    "first year, 31 in the last. Farther down, where the tide begins to be felt, two villages share one church, one "
    "post office and a quarrel about a field that is as old as the church itself.",
    "To bake bread you need flour, water, salt and time. Mix 500 g of flour with 325 ml of water, let it rest for an "
    "hour, then fold the dough (3 or 4 times) and wait again.\n\nWe've tried it ourselves: don't hurry!\n\n1. Heat "
    "the oven to 240 degrees and put an iron pot inside while it warms.\n2. Turn the dough out onto a floured board, "
    "shape it into a ball and let it stand under a cloth for 40 minutes.\n3. Lift it into the hot pot, cut the top "
    "with a sharp knife and put the lid on.\n4. After half an hour take the lid off; bake until the crust is dark "
    "brown.\n\nA loaf that sounds hollow when you knock on it is done. Let it cool on a rack for at least an hour "
    "before you cut it, however good it smells, because the crumb is still setting.",
    "def area(width, height):\n    return width * height  # both in metres\n\nprint(area(2.5, 10))\n\nThe function "
    "returns 25.0, as you'd expect; call it with other values and compare what you get.\n\nclass Room:\n    def "
    "__init__(self, name, width, height):\n        self.name = name\n        self.size = area(width, height)\n\n    "
    'def is_larger_than(self, other):\n        return self.size > other.size\n\nkitchen = Room("kitchen", 3.0, 4.2)\n'
    'hall = Room("hall", 1.5, 6.0)\nfor room in (kitchen, hall):\n    print(f"{room.name}: {room.size:.1f} square '
    'metres")\n\nif kitchen.is_larger_than(hall):\n    print("The kitchen is the larger one.")\nelse:\n    '
    'print("The hall is the larger one.")\n',
    '"You are late again," said the keeper, without looking up from his book.\n\n"The train stood for an hour '
    'outside the tunnel," Anna answered. She put the lamp on the table and took off her wet coat. "They said that a '
    'tree had come down on the line. Has anybody called?"\n\n"Twice. The first time it was your sister, who wants '
    'her ladder back. The second time nobody spoke, but I could hear the sea." He turned a page. "I told the sea '
    "that you'd be home at eight.\"\n\nAnna laughed, though she was not sure that he was joking. Since the autumn he "
    "had said many such things in the same dry voice, and one or two of them had later turned out to be true. "
    "Outside, the wind had begun to move the shutters, first one and then all of them together.",
    "A star shines because its own weight presses the gas at its centre until atoms join there. Four nuclei of "
    "hydrogen become one of helium, and 0.7 % of their mass leaves as energy. The Sun loses about 4 million tonnes a "
    "second in this way, and it has enough hydrogen for another 5,000 million years. What happens then depends on "
    "the mass alone. A small star swells, sheds its outer layers and leaves a white dwarf of the size of the Earth, "
    "which cools slowly. A star of more than eight solar masses goes on to burn carbon, oxygen and silicon, each for "
    "a shorter time than the one before, until its core is iron. Iron gives no energy, so the core falls in on "
    "itself within a second, and the rest is thrown out in a flash that can be seen from other galaxies.",
    "Dear Mr Hall,\n\nThank you for your letter of 14 March about the heating in flat 7B. We have looked at the "
    "bills of the last three winters, and you are right: in 2021 you were charged £612.40, which is £97.15 more than "
    "the meter shows. The mistake was made when two flats on your floor were given the same number in our books. We "
    "shall pay the difference into your account by the end of the month; you need not do anything.\n\nAs to the "
    "second point, the noise in the pipes, an engineer will call on Tuesday 28 March between 9:00 and 11:30. If that "
    "does not suit you, please ring 555-0142 or write to the office, and ask for another day.\n\nWith kind regards,\n"
    "the management",
)
"""The first three open the short probe too."""
ODD_TEXT = "  Ünïcode \u2014 na\u00efve caf\u00e9, \u043f\u0440\u0438\u0432\u0435\u0442, \u4f60\u597d 12345 x_1\t!?\n"
"""What a tokenizer may split in an unusual way."""
