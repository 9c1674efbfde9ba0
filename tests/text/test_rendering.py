"""Chat rendering: ids and what is trained on, decided once for SFT, PPO and GRPO."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from tests import tiny
from upslope.errors import InputError
from upslope.models.loading import CHATML
from upslope.text.rendering import Renderer
from upslope.types import Example, Message

PAD, START, END, UNKNOWN = 0, 1, 2, 3
TALK: tuple[Message, ...] = (
    {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"},
    {"role": "user", "content": "and 3?"}, {"role": "assistant", "content": "5!"},
)  # fmt: skip
LLAMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[' + m['content'] + ']' }}{% else %}"
    "{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""BOS first, the end token after each answer, no generation prompt."""


def ids(text: str) -> list[int]:
    """One id a character; markers are ids of their own. Written out here, beside the code under test."""
    out: list[int] = []
    while text:
        for marker, token in (("<|im_start|>", START), ("<|im_end|>", END), ("<pad>", PAD)):
            if text.startswith(marker):
                out.append(token)
                text = text[len(marker) :]
                break
        else:
            out.append(len(tiny.SPECIAL) + tiny.CHARACTERS.index(text[0]))
            text = text[1:]
    return out


def with_bos(template: str | None) -> Any:
    """A tokenizer that puts BOS before every text (as Llama's and Gemma's do)."""
    tokenizer = tiny.tokenizer(chat=False)
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", START)]
    )
    tokenizer.chat_template = template
    assert tokenizer("a")["input_ids"] == [START, *ids("a")]
    return tokenizer


def chat(**options: Any) -> Renderer:
    return Renderer(tiny.tokenizer(), [END], **options)


def trained(encoded: Any) -> list[int]:
    return [token for token, wanted in zip(encoded.token_ids, encoded.trainable, strict=True) if wanted]


# ------------------------------------------------------------------------------------------------------- prompts
def test_a_plain_prompt_becomes_a_user_s_message_where_there_is_a_template() -> None:
    expected = ids("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert chat().prompt("hi") == expected
    assert chat().prompt(({"role": "user", "content": "hi"},)) == expected
    assert chat(chat="always").prompt("hi") == expected


def test_a_base_model_takes_plain_prompts_as_they_are() -> None:
    assert Renderer(tiny.tokenizer(chat=False), [END]).prompt("hi") == ids("hi")
    assert chat(chat="never").prompt("hi") == ids("hi")


def test_token_ids_need_no_rendering() -> None:
    assert chat().prompt((9, 8, 7)) == [9, 8, 7]


def test_bos_is_written_once_by_the_template_or_by_the_tokenizer() -> None:
    templated = Renderer(with_bos(LLAMA_LIKE), [END])
    assert templated.prompt("hi") == [START, *ids("[hi]")]
    assert templated.prompt("hi").count(START) == 1
    plain = Renderer(with_bos(None), [END])
    assert plain.prompt("hi") == [START, *ids("hi")]


def test_bos_stands_at_the_start_alone_of_examples_and_conversations() -> None:
    for renderer in (Renderer(with_bos(LLAMA_LIKE), [END]), Renderer(with_bos(None), [END])):
        row = renderer.example(Example("r", "hi", "yes"))
        assert row.token_ids[0] == START and row.token_ids.count(START) == 1
    talk = Renderer(with_bos(LLAMA_LIKE), [END]).example(Example("r", TALK, None))
    assert list(talk.token_ids) == [START, *ids("[1+1?]2<|im_end|>[and 3?]5!<|im_end|>")]
    assert trained(talk) == ids("2<|im_end|>5!<|im_end|>")


def test_a_tokenizer_without_bos_gets_none() -> None:
    assert Renderer(tiny.tokenizer(chat=False), [END]).prompt("a")[0] != START


def test_the_system_prompt_is_put_once_and_gives_way_to_a_row_s_own() -> None:
    renderer = chat(system_prompt="Be brief.")
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    tail = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert renderer.prompt("hi") == ids(system + tail)
    assert renderer.prompt(({"role": "user", "content": "hi"},)) == ids(system + tail)
    own = ({"role": "system", "content": "Own."}, {"role": "user", "content": "hi"})
    assert renderer.prompt(own) == ids("<|im_start|>system\nOwn.<|im_end|>\n" + tail)
    talk = renderer.example(Example("r", TALK, None)).token_ids
    assert list(talk[: len(ids(system))]) == ids(system)
    assert tiny.tokenizer().decode(list(talk)).count("Be brief.") == 1


def test_a_system_prompt_that_could_not_be_shown_is_refused() -> None:
    base = Renderer(tiny.tokenizer(chat=False), [END], system_prompt="x")
    for renderer in (chat(chat="never", system_prompt="x"), base):
        with pytest.raises(InputError, match=r"data.system_prompt.*Fix: "):
            renderer.prompt("hi")


# --------------------------------------------------------------------------------------------------- completions
@pytest.mark.parametrize("content", ["What is 1+1?", TALK[:1], (9, 8, 7)], ids=["text", "messages", "ids"])
@pytest.mark.parametrize("options", [{}, {"chat": "never"}, {"system_prompt": "Short."}], ids=str)
def test_an_sft_prompt_is_id_for_id_the_prompt_that_a_policy_meets(content: Any, options: dict[str, Any]) -> None:
    renderer = chat(**options)
    row = renderer.example(Example("r", content, "two"))
    prompt = renderer.prompt(content)
    assert list(row.token_ids[: len(prompt)]) == prompt
    assert list(row.token_ids[len(prompt) :]) == ids("two<|im_end|>")


def test_the_stop_token_belongs_to_the_completion_and_is_trained_on() -> None:
    row = chat().example(Example("r", "hi", "yes"))
    assert trained(row) == ids("yes<|im_end|>") and row.token_ids[-1] == END and row.trainable[-1]
    assert not any(row.trainable[: -len(ids("yes<|im_end|>"))])
    base = Renderer(tiny.tokenizer(chat=False), [END, 9]).example(Example("r", "hi", "yes"))
    assert trained(base) == ids("yes<|im_end|>")


def test_an_empty_answer_is_the_stop_token() -> None:
    assert trained(chat().example(Example("r", "hi", ""))) == [END]


def test_padding_that_equals_the_end_token_changes_nothing() -> None:
    same = tiny.tokenizer()
    same.pad_token = "<|im_end|>"
    assert same.pad_token_id == same.eos_token_id == END
    rows = [Example("r", "hi", "yes"), Example("t", TALK, None)]
    for row in rows:
        assert Renderer(same, [END]).example(row) == chat().example(row)
    answer = [*ids("ok"), END]
    assert Renderer(same, [END]).text(answer) == chat().text(answer) == "ok"


def test_text_leaves_out_end_tokens_and_other_special_tokens() -> None:
    assert chat().text(ids("<|im_start|>a b<|im_end|>")) == "a b"
    assert Renderer(tiny.tokenizer(), [END, *ids("Z")]).text(ids("abZ")) == "ab"
    assert chat().text([]) == ""


# ------------------------------------------------------------------------------------------------- conversations
def test_every_assistant_turn_is_trained_with_its_stop_token_and_nothing_else_is() -> None:
    row = chat().example(Example("r", TALK, None))
    text = (
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\nand 3?<|im_end|>\n<|im_start|>assistant\n5!<|im_end|>"
    )
    assert list(row.token_ids) == ids(text)
    assert trained(row) == ids("2<|im_end|>5!<|im_end|>")
    first = len(ids(text[: text.index("2<")]))
    assert [place for place, wanted in enumerate(row.trainable) if wanted][:2] == [first, first + 1]


def test_a_conversation_begins_with_the_prompt_that_a_policy_meets() -> None:
    renderer = chat()
    row = renderer.example(Example("r", TALK, None))
    for turn in (1, 3):
        prompt = renderer.prompt(TALK[:turn])
        assert list(row.token_ids[: len(prompt)]) == prompt
        assert row.trainable[len(prompt)] and not row.trainable[len(prompt) - 1]


def test_what_follows_the_last_answer_is_left_out() -> None:
    row = chat().example(Example("r", (*TALK, {"role": "user", "content": "bye"}), None))
    assert row == chat().example(Example("r", TALK, None))


def test_an_answer_whose_template_writes_no_end_token_is_ended_all_the_same() -> None:
    silent = tiny.tokenizer()
    silent.chat_template = (
        "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
    )
    renderer = Renderer(silent, [END])
    assert renderer.stop_id == END
    row = renderer.example(Example("r", TALK[:2], None))
    assert row.token_ids[-1] == END and row.trainable[-1]
    assert list(row.token_ids[: len(ids("u:1+1?\na:2"))]) == ids("u:1+1?\na:2")


def test_a_conversation_without_an_answer_is_refused() -> None:
    with pytest.raises(InputError, match=r"row r7: .*no assistant message.*Fix: "):
        chat().example(Example("r7", TALK[:1], None))


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    """As reasoning templates do, which drop the thoughts of all turns but the last."""
    rewriting = tiny.tokenizer()
    rewriting.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' and not loop.last %}"
        "{{ m['content'][0] }}{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    long = (TALK[0], {"role": "assistant", "content": "2, I think"}, *TALK[2:])
    with pytest.raises(
        InputError, match=r"row r: the chat template rewrites earlier turns \(at message 4\).*Fix: give one"
    ):
        Renderer(rewriting, [END]).example(Example("r", long, None))
    single = Renderer(rewriting, [END]).example(Example("r", long[:2], None))
    assert trained(single) == ids("2, I think<|im_end|>")


@pytest.mark.parametrize("fault", ["{{ raise_exception('roles must alternate') }}", "{{ messages[0].nothing.here }}"])
def test_a_template_that_raises_is_an_input_error(fault: str) -> None:
    strict = tiny.tokenizer()
    strict.chat_template = "{% if messages[0]['role'] == 'tool' %}" + fault + "{% endif %}" + CHATML
    renderer = Renderer(strict, [END])
    with pytest.raises(
        InputError, match=r"model.chat_template: the template refuses a conversation: .*Fix: check the roles"
    ):
        renderer.prompt(({"role": "tool", "content": "x"},))


def test_a_template_with_a_syntax_error_is_an_input_error() -> None:
    broken = tiny.tokenizer()
    broken.chat_template = "{% for m in messages %}{{ m"
    with pytest.raises(InputError, match=r"model.chat_template: "):
        Renderer(broken, [END])


def test_content_that_the_template_cannot_join_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"model.chat_template: "):
        chat().prompt(({"role": "user", "content": None},))


def test_conversations_without_a_template_are_refused() -> None:
    base = Renderer(tiny.tokenizer(chat=False), [END])
    with pytest.raises(InputError, match=r"model.chat_template: .*set model.chat_template: chatml"):
        base.prompt(TALK[:1])
    with pytest.raises(InputError, match=r"data\.chat: always"):
        Renderer(tiny.tokenizer(chat=False), [END], chat="always")


# ---------------------------------------------------------------------------------------------------- end tokens
def test_the_end_of_turn_token_is_found_where_it_is_not_the_eos() -> None:
    """SmolLM2's base, Qwen's base and others: eos is the end of text, the template ends turns with another token."""
    other = tiny.tokenizer()
    other.eos_token = "<pad>"
    other.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    assert other.eos_token_id == PAD and END in other.all_special_ids
    renderer = Renderer(other, [PAD])
    assert renderer.stop_id == END
    assert renderer.stop_ids == (END, PAD)  # both end a completion
    assert trained(renderer.example(Example("r", "hi", "yes"))) == [*ids("yes"), END]
    assert trained(renderer.example(Example("r", TALK, None))) == ids("2<|im_end|>5!<|im_end|>")


def test_all_end_tokens_of_the_generation_config_stop_and_the_template_s_comes_first() -> None:
    assert chat().stop_ids == (END,)
    assert Renderer(tiny.tokenizer(), [9, END, 7]).stop_ids == (END, 9, 7)
    assert Renderer(tiny.tokenizer(chat=False), [9, END, 7]).stop_ids == (9, END, 7)


def test_a_plain_prompt_on_a_chat_model_ends_with_the_first_end_token() -> None:
    renderer = Renderer(tiny.tokenizer(), [9, END], chat="never")
    assert renderer.stop_id == 9 and renderer.stop_ids == (9, END)


@pytest.mark.parametrize("chat_mode", ["auto", "never"])
@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}"], ids=["base", "template"])
def test_a_model_without_any_end_token_is_refused(template: str | None, chat_mode: Any) -> None:
    tokenizer = tiny.tokenizer(chat=False)
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=r"model.name: .*end token.*Fix: set eos_token"):
        Renderer(tokenizer, [], chat=chat_mode)
