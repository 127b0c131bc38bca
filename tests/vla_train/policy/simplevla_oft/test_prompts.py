import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vla_train.policy.simplevla_oft import named_config
from vla_train.policy.simplevla_oft.prompts import PromptEncoder, prompt_text
from vla_train.policy.simplevla_oft.small_tokenizer import PROMPT_END_ID, small_tokenizer

_TOKENIZER = small_tokenizer()
_CONFIG = named_config(
    "tiny", num_text_tokens=_TOKENIZER.get_vocab_size(), prompt_end_token_id=PROMPT_END_ID, chunk_size=8, action_dim=7
)


def test_the_prompt_is_the_published_one_in_lower_case():
    assert prompt_text("Put the Bowl down") == "In: What action should the robot take to put the bowl down?\nOut:"


@given(st.text(max_size=60))
def test_any_instruction_becomes_ids_that_read_as_its_prompt(instruction):
    ids = PromptEncoder(_TOKENIZER, _CONFIG).ids(instruction)
    assert ids[0] == _CONFIG.bos_token_id
    assert ids[-1] == PROMPT_END_ID
    assert max(ids) < _CONFIG.first_action_id
    if not any(special in instruction for special in ("<unk>", "<s>", "</s>", "<out>")):
        assert _TOKENIZER.decode(ids) == prompt_text(instruction)


def test_common_words_are_one_token_each():
    tokens = [_TOKENIZER.id_to_token(i) for i in PromptEncoder(_TOKENIZER, _CONFIG).ids("put the cream cheese in the bowl")]
    expected = "<s> In : ĠWhat Ġaction Ġshould Ġthe Ġrobot Ġtake Ġto Ġput Ġthe Ġcream Ġcheese Ġin Ġthe Ġbowl ? Ċ Out : <out>"
    assert tokens == expected.split()


def test_ids_of_the_small_tokenizer_are_consecutive():
    vocabulary = _TOKENIZER.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


def test_prompts_of_a_batch_are_padded_at_the_right_end_and_masked():
    encoder = PromptEncoder(_TOKENIZER, _CONFIG)
    ids, mask = encoder.batch(("put the bowl on the plate", "open the drawer"))
    assert mask is not None
    assert ids.shape == mask.shape
    assert mask.sum(1).tolist() == [len(encoder.ids("put the bowl on the plate")), len(encoder.ids("open the drawer"))]
    assert (ids[~mask] == _CONFIG.pad_token_id).all()
    assert not (~mask[:, :-1] & mask[:, 1:]).any()


def test_prompts_of_one_length_need_neither_padding_nor_a_mask():
    encoder = PromptEncoder(_TOKENIZER, _CONFIG)
    ids, mask = encoder.batch(("open the drawer", "close the drawer"), multiple_of=64)
    assert ids.tolist() == [encoder.ids("open the drawer"), encoder.ids("close the drawer")]
    assert mask is None


@pytest.mark.parametrize("beside", [0, 5])
def test_prompts_of_different_length_are_padded_to_few_widths(beside):
    encoder = PromptEncoder(_TOKENIZER, _CONFIG)
    ids, mask = encoder.batch(("put the bowl on the plate", "open the drawer"), multiple_of=16, beside=beside)
    assert (ids.shape[1] + beside) % 16 == 0
    assert ids.shape[1] - len(encoder.ids("put the bowl on the plate")) in range(16)
    assert mask is not None
    assert mask.shape == ids.shape


def test_with_one_width_prompts_are_padded_to_the_longest_that_was_ever_asked_for():
    encoder, short, long = PromptEncoder(_TOKENIZER, _CONFIG), "open the drawer", "put the bowl on the plate"
    assert encoder.batch((short, short), one_width=True)[1] is None
    widths = {encoder.batch(batch, one_width=True, multiple_of=8)[0].shape[1] for batch in ((short, long), (short,), (long,))}
    assert len(widths) == 1
    _, mask = encoder.batch((short,), one_width=True, multiple_of=8)
    assert mask is not None
    assert mask.sum() == len(encoder.ids(short))
    assert encoder.batch((short,))[1] is None


def test_bos_and_the_end_token_are_added_only_where_they_are_missing():
    words = ["<unk>", "<s>", "</s>", "<out>", *prompt_text("x").split()]
    ids = {word: number for number, word in enumerate(words)}

    def encoder(**special: str) -> PromptEncoder:
        tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if special:
            tokenizer.post_processor = processors.TemplateProcessing(special_tokens=[("<s>", 1), ("<out>", 3)], **special)
        return PromptEncoder(tokenizer, _CONFIG)

    expected = [1, *range(4, len(words)), 3]
    assert encoder().ids("x") == expected
    assert encoder(single="<s> $A").ids("x") == expected
    assert encoder(single="<s> $A <out>").ids("x") == expected


def test_padding_and_truncation_stored_in_a_tokenizer_do_not_act():
    tokenizer = small_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=100)
    assert PromptEncoder.from_json(tokenizer.to_str(), _CONFIG).ids("open it") == PromptEncoder(_TOKENIZER, _CONFIG).ids(
        "open it"
    )


@pytest.mark.parametrize("content", [b"{", b"{}", b"\xff\xfe", b'"text"'])
def test_a_damaged_tokenizer_is_refused_by_name(content):
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        PromptEncoder.from_json(content, _CONFIG)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused():
    tokenizer = small_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(2000)])
    with pytest.raises(ValueError, match="vocabulary of"):
        PromptEncoder.from_json(tokenizer.to_str(), _CONFIG)
