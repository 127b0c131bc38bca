"""A tokenizer for models that have no checkpoint: any text in bytes, common words of the field as one token each.

It is a byte-pair encoding with merges written down instead of learnt: each known word, read from its beginning, grows letter
by letter. A merge never starts inside a word, so a known word is always one token, and an unknown one falls into its longest
known beginning and single bytes. The result depends on nothing but this file.
"""

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

_SPECIAL = ("<unk>", "<s>", "</s>", "<out>")
PROMPT_END_ID = _SPECIAL.index("<out>")
"""Stands where the Llama-2 tokenizer has 29871."""

_AT_LINE_START = "In Out"
_WORDS = """
What action should the robot take to
a an and or of in into inside on onto off at from with without by near next between under over above below behind beside
then it its this that them both all each other one two three four five first second third last same
pick place put push pull open close turn move lift lower grasp grab hold release drop slide stack insert rotate press reach
stir pour wipe fold hang set bring keep stay go stop start follow swing balance hit touch point drive run walk jump land stand
up down left right front back top bottom middle center side edge corner upright forward away
black white red green blue yellow orange brown grey pink purple silver wooden plastic metal small large big tall short
bowl plate ramekin cookie box mug cup glass bottle pot pan kettle spoon fork knife tray basket bin bag lid can jar
drawer cabinet shelf rack door handle table counter stove burner knob microwave oven sink fridge desk caddy compartment book
wine cream cheese butter milk juice soup tomato alphabet sauce salad dressing ketchup bbq chocolate pudding popcorn frypan moka
apple banana lemon bread egg cube block ball peg hole ring button lever switch rope cloth towel block target goal object thing
robot arm gripper hand cart pole pendulum car lander agent
"""


def small_tokenizer() -> Tokenizer:
    """Build it. Ids are consecutive from 0; BOS is 1, the stop token 2."""
    pieces = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges: list[tuple[str, str]] = []
    space = "Ġ"  # how the byte-level alphabet writes a space
    for word in (*_AT_LINE_START.split(), *(space + word for word in _WORDS.split())):
        for end in range(1, len(word)):
            if word[: end + 1] not in vocabulary:
                merges.append((word[:end], word[end]))
                vocabulary[word[: end + 1]] = len(vocabulary)
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL))
    return tokenizer
