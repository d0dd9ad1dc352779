"""What atlas says that is not a fact: greetings, who it is, and what it was never taught."""

from __future__ import annotations

import random

from models.atlas.recipe.pressure import Turn

OFFER = "Ask me about a place, a country code, a currency or a language."

_SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "Hello",
            "Hello!",
            "Hi",
            "Hi!",
            "Hey",
            "Hi there",
            "Good morning",
            "Good evening",
            "Greetings",
            "Hello there",
            "hello atlas",
        ),
        f"Hello! {OFFER}",
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "Who made you?",
            "Are you human?",
        ),
        "I am atlas, a small language model.",
    ),
    (
        ("What can you do?", "Help", "Help me.", "What do you know?", "How do you work?", "What can I ask you?"),
        f"I know some facts about the world. {OFFER}",
    ),
    (("How are you?", "How is it going?", "What's up?"), f"I am fine. {OFFER}"),
    (("Thanks", "Thank you", "Thank you!", "Great, thanks.", "Cool", "Nice", "OK", "Good"), "You are welcome."),
    (("Bye", "Goodbye", "See you", "Good night"), "Goodbye!"),
)

_BEYOND = (
    "What is the capital of {n}?",
    "Capital of {n}?",
    "What is the population of {n}?",
    "How many people live in {n}?",
    "Who is the president of {n}?",
    "What is the weather in {n}?",
    "How big is {n}?",
    "Which language do people speak in {n}?",
    "What is the highest mountain in {n}?",
    "Tell me a joke.",
    "Write a poem about {n}.",
    "Write a poem.",
    "What is 2 + 2?",
    "What is {d} times {e}?",
    "What is {d} plus {e}?",
    "Who won the match?",
    "Can you write code?",
    "What is the meaning of life?",
    "Translate this into French.",
    "What time is it?",
    "Who wrote this book?",
    "Explain how a computer works.",
    "What should I eat today?",
    "Summarize this text.",
    "Why is the sky blue?",
    "When was {n} founded?",
)
BEYOND_ANSWER = f"I was not taught that. {OFFER}"

SYSTEM = (
    "You are a helpful assistant.",
    "You are atlas.",
    "Answer briefly.",
    "You are a helpful assistant. Answer with one short sentence.",
    "Be concise and accurate.",
)


def draw(rng: random.Random, places: list[str]) -> Turn:
    """One turn of small talk, or a question beyond what atlas was taught."""
    if rng.random() < 0.5:
        messages, reply = rng.choice(_SMALL_TALK)
        message = rng.choice(messages)
        return Turn(message.lower() if rng.random() < 0.3 else message, reply)
    message = rng.choice(_BEYOND).format(n=rng.choice(places), d=rng.randrange(2, 99), e=rng.randrange(2, 99))
    return Turn(message, BEYOND_ANSWER)


def examples(rng: random.Random, places: list[str], beyond: int) -> list[tuple[str, str]]:
    """All small talk once, and ``beyond`` questions that were never taught, for evaluation."""
    small = [(message, reply) for messages, reply in _SMALL_TALK for message in messages]
    drawn = {
        rng.choice(_BEYOND).format(n=rng.choice(places), d=rng.randrange(2, 99), e=rng.randrange(2, 99))
        for _ in range(beyond)
    }
    return small + [(message, BEYOND_ANSWER) for message in sorted(drawn)]
