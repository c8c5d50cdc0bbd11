"""A user's template: faults that submission can name, the prompt it makes, and what it can cost."""

from __future__ import annotations

import time

import pytest

from cluster.errors import StageError
from cluster.messages import Problem, Verdict
from cluster.spec.contexts import TEMPLATE_TOKENS, Critique, Demonstration, SiblingSolution, UserTemplate
from rollout.context import user_template
from rollout.context.renderer import TemplateRenderer
from rollout.context.user_template import check_template
from rollout.processes.pool import LimitedPool

PASS = Verdict(score=1.0, passed=True)
FAIL = Verdict(score=0.0, passed=False, feedback="too small")
FRAME = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


# -- what submission can say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "{{ problem }}",
        "{{ problem }}{% if solution %}\nHint: {{ solution | trim | upper }}{% endif %}",
        "{% for line in feedback.splitlines() %}{{ loop.index }}. {{ line }}\n{% endfor %}{{ problem }}",
        "{% set short = critique[:20] %}{{ problem }} {{ short }}",
        "{% macro part(name, words) %}{{ name }}: {{ words }}{% endmacro %}{{ part('Q', problem) }}{{ part('A', reasoning) }}",
        "{{ problem }}{# a comment #}{% raw %}{{ not_a_name }}{% endraw %}{{ attempt is defined }}",
    ],
)
def test_a_template_that_can_be_rendered_has_no_fault(text):
    assert check_template(text) == []


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("{{ problem }}\n{% if solution %}", ["line 2: Unexpected end of template"]),
        ("{{ problem ", ["line 1: unexpected end of template"]),
        ("{{ problem }} {{ answer }}", ["line 1: unknown variable 'answer'; known are problem, solution, feedback"]),
        ("{{ solution }}", ["the template does not use {{ problem }}"]),
        ("{% set problem = solution %}x", ["the template does not use {{ problem }}"]),
        ("{{ problem | shout }}", ["line 1: there is no filter 'shout'"]),
        ("{{ problem is shouted }}", ["line 1: there is no test 'shouted'"]),
        ("{{ problem | attr('x') }}", ["line 1: there is no filter 'attr'"]),
        ("{{ [problem] | random }}", ["line 1: there is no filter 'random'"]),
        ("{{ problem }}\n\n{{ solution.__class__ }}", ["line 3: attribute '__class__' may not be read"]),
        ("{{ problem }}{{ solution['__class__'] }}", ["line 1: attribute '__class__' may not be read"]),
        ("{{ problem }}{% include 'other' %}", ["line 1: a template cannot load another one"]),
        ("{{ problem }}{% for i in range(9) %}{% endfor %}", ["line 1: unknown variable 'range'"]),
        ("{{ problem }}" + "(" * 10, []),
        ("{{ problem " + "(" * 7000 + " }}", ["the template cannot be read: RecursionError"]),
        ("{{ problem }}{{ " + "9" * 5000 + " }}", ["the template cannot be read: ValueError"]),
        ("{{ problem }}" + "x" * 8000, ["the template has 8013 characters; allowed are 8000"]),
    ],
)
def test_faults_are_named(text, faults):
    found = check_template(text)
    assert len(found) == len(faults)
    assert all(said.startswith(wanted) for said, wanted in zip(found, faults, strict=True)), found


def test_checking_computes_nothing():
    """Jinja folds constants when it compiles; a check in the service must not."""
    start = time.monotonic()
    assert check_template("{{ problem }}{{ 'x' | center(99999999999) }}{{ 9 ** 9 ** 9 ** 9 }}{{ 'y' * 99999999999 }}") == []
    assert time.monotonic() - start < 0.5


# -- the prompt ------------------------------------------------------------------------------------------------------


def contents(chat, contexts):
    head, tail = FRAME.split("{}")
    texts = [
        context and chat._tokenizer.decode(context.teacher_prompt_token_ids.tolist(), skip_special_tokens=False)
        for context in contexts
    ]
    return [text and text.removeprefix(head).removesuffix(tail) for text in texts]


def test_a_users_template_is_the_whole_last_message(chat, group, build):
    template = UserTemplate(text="Q: {{ problem }}\n{% if solution %}S: {{ solution }}\n{% endif %}F: {{ feedback or 'none' }}")
    spec = SiblingSolution(template=template, feedback="always")
    contexts = build(spec, group("95", "12", "13"), [PASS, FAIL, FAIL])
    assert contents(chat, contexts) == [None, *["Q: 37+58=?\nS: 95\nF: too small"] * 2]
    assert contexts[1].kind == "sibling_solution"


def test_the_budget_cuts_the_context_in_a_users_template_and_never_the_problem(chat, group, build):
    long = "the quick brown fox " * 20
    template = UserTemplate(text="{{ solution }}|{{ problem }}|end")
    context = build(SiblingSolution(template=template, max_context_tokens=4), group(long, "no"), [PASS, FAIL])[1]
    kept, cut = chat.head(long, 4)
    assert contents(chat, [context]) == [f"{kept}|37+58=?|end"] and context.truncated_tokens == cut > 0


def test_a_critic_beside_a_users_template_reads_named_words(chat, group, stage_contexts, writer):
    critic = writer(lambda prompt, seed: "carry")
    spec = Critique(template=UserTemplate(text="{{ problem }} ({{ critique }})"), show_solution=False)
    contexts = stage_contexts(spec, critic).build([group("12")], [[FAIL]], 0)[0]
    assert contents(chat, contexts) == ["37+58=? (carry)"]
    assert "The attempt is wrong. too small" in critic.prompts(0)[0] and "Do not solve the problem again." in critic.prompts(0)[0]


def test_pieces_of_context_cannot_make_a_special_token(chat, group, build):
    template = UserTemplate(text="{{ problem }}{{ solution }}{{ attempt }}")
    contexts = build(SiblingSolution(template=template, show_attempt=True), group("a<|im_", "end|>b"), [PASS, FAIL])
    assert contents(chat, contexts)[1] == "37+58=?ab"


def test_words_of_a_context_are_never_a_template(chat, group, build):
    spec = SiblingSolution(template=UserTemplate(text="{{ problem }}:{{ solution }}"))
    assert contents(chat, build(spec, group("{{ 1 + 1 }}{% if %}", "no"), [PASS, FAIL]))[1] == "37+58=?:{{ 1 + 1 }}{% if %}"


# -- what it can cost ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def renderer(chat):
    made = TemplateRenderer(chat, deadline_s=1.0)
    yield made
    made.close()


PROBLEM = Problem(problem_id="d/train/0", domain="d", messages=({"role": "user", "content": "37+58=?"},), solution="95")


def rendered(renderer, *texts, budget=16, **parts):
    return renderer.render([(UserTemplate(text=text), PROBLEM, list(parts.items()), budget) for text in texts])


ENDLESS = "{% for a in 'x' * 9999 %}{% for b in 'x' * 9999 %}{% for c in 'x' * 9999 %}{% endfor %}{% endfor %}{% endfor %}"


def test_a_template_that_does_not_end_is_stopped_and_the_next_one_is_rendered(renderer):
    rendered(renderer, "{{ problem }}")
    start = time.monotonic()
    found = rendered(renderer, "{{ problem }}", ENDLESS, "{{ problem }}!")
    assert found == [("37+58=?", None), ("", "was stopped after 1 s"), ("37+58=?!", None)]
    assert 1.0 <= time.monotonic() - start < 20.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ problem }}{{ 'x' * 9999999999 }}", "MemoryError"),
        ("{{ problem }}{{ solution | center(9999999999) }}", "MemoryError"),
        ("{{ problem }}{% for a in 'x' * 9999 %}{{ 'y' * 99 }}{% endfor %}", "more than 200000 characters were rendered"),
        ("{{ problem }}{{ solution.__class__.__mro__ }}", "unsafe"),
        ("{{ problem }}{{ '{0.__class__}'.format(problem) }}", "unsafe"),
        ("{{ problem }}{{ [problem] | map('attr', '__class__') | list }}", "attr"),
        ("{{ problem }}{{ problem.nothing }}", "nothing"),
        ("{{ problem }}{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% if problem %}  {% endif %}", "rendered no text"),
        ("{{ problem * 400 }}", "tokens; the problem, the context's 16 and the template's own words make"),
    ],
)
def test_a_template_that_fails_says_how(renderer, text, said):
    (words, failure), (after, none) = rendered(renderer, text, "{{ problem }}", solution="95")
    assert words == "" and said in failure
    assert (after, none) == ("37+58=?", None)


def test_nothing_in_the_process_reaches_a_file_or_a_module(renderer):
    """What templates escape by elsewhere: globals of functions that the environment hands out."""
    for name in ("cycler", "joiner", "namespace", "lipsum", "self", "request", "config"):
        text, failure = rendered(renderer, "{{ problem }}{{ " + name + ".__init__.__globals__ }}")[0]
        assert text == "" and "access to attribute '__init__'" in failure and "is unsafe" in failure


def test_a_prompt_of_the_longest_allowed_size_is_rendered(renderer, chat):
    room = (
        len(chat.text_token_ids("37+58=?")) + len(chat.text_token_ids("{{ problem }}{{ solution * 1 }}")) + 16 + TEMPLATE_TOKENS
    )
    words = "x" * (room - len(chat.text_token_ids("37+58=?")))
    assert rendered(renderer, "{{ problem }}{{ solution * 1 }}", solution=words) == [("37+58=?" + words, None)]
    assert rendered(renderer, "{{ problem }}{{ solution * 1 }}", solution=words + "x")[0][1].startswith(
        f"rendered {room + 1} tokens"
    )


def test_a_template_that_fails_on_more_than_a_fifth_fails_the_stage_and_otherwise_costs_its_rollouts(chat, group, stage_contexts):
    template = UserTemplate(text="{{ problem }}{{ 1 // (attempt | length) }}")
    texts = ["1", "2", "3", "4", "55"]
    fails_once = UserTemplate(text="{{ problem }}{{ 1 // (2 - attempt | length) }}")
    contexts = stage_contexts(Demonstration(template=fails_once, show_attempt=True, when_empty="plain_prompt"))
    built = contexts.build([group(*texts)], [[PASS] * 5], 0)[0]
    assert [context is None for context in built] == [False] * 4 + [True]
    assert contexts.metrics["teacher/template_failures"] == 1.0 and contexts.metrics["teacher/context_share"] == 0.8
    with pytest.raises(StageError, match=r"failed on 2 of 5 rollouts.*ZeroDivisionError") as raised:
        contexts.build([group("1", "2", "3", "44", "55")], [[PASS] * 5], 0)
    assert raised.value.reason == "template_failed"
    assert stage_contexts(Demonstration(template=template, show_attempt=True)).build([group("1")], [[PASS]], 0)[0][0] is not None


def test_the_process_is_small_and_loads_no_model_library():
    with LimitedPool("rollout.context.user_template", memory_bytes=1 << 30) as pool:
        assert pool.run([("{{ problem }}", {"problem": "?"})]) == [{"text": "?"}]
    import subprocess
    import sys

    code = "import rollout.context.user_template, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "transformers", "vllm", "ray"}.isdisjoint(loaded)
    assert user_template.ENVIRONMENT.globals == {}
