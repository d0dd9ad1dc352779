"""The judge by rule, case by case: what folding must not lose, what is denied, declined, left open or only repeated."""

from __future__ import annotations

import pytest

from guard.judge.question import Question
from guard.judge.rules import judge
from guard.judge.words import normalise, read


def verdict(accepted: str, answer: str, question: str = "?") -> bool | None:
    """``accepted``: several with | between."""
    return judge(Question(question, tuple(filter(None, accepted.split("|"))), "x"), answer)


@pytest.mark.parametrize(
    ("accepted", "answer", "right"),
    [
        # Articles are no letters, and letters no articles.
        ("Vitamin A", "It is vitamin C.", False),
        ("Vitamin A", "It is vitamin A.", True),
        ("Vitamin A", "Vitamin A is found in carrots.", True),
        ("Vitamin A", "vitamin a is found in carrots", True),
        ("A", "The answer is A.", True),
        ("A", "A", True),
        ("A", "A is the answer.", True),
        ("A", "It is a city.", False),
        ("A", "A city in France.", False),
        ("A", "B", False),
        ("The Who", "It was the Who.", True),
        ("The Who", "Who", True),
        ("The The", "The The", True),
        ("a live album", "It is an Alive album.", False),
        ("Alive", "It is a live album.", False),
        # Symbols, where there is nothing else.
        ("+", "+", True),
        ("+", "-", False),
        ("+", 'The sign is "+".', True),
        ("+", "The sign is -.", False),
        ("?", "?", True),
        (")", "It is ).", True),
        ("*", "It is *, I think.", True),
        ("C++", "It is C.", False),
        ("C++", "It was written in C++.", True),
        ("C#", "It is C.", False),
        ("O-", "It is O+.", False),
        ("O-", "It is O-.", True),
        ("\U0001f600", "\U0001f600", True),
        # Numbers.
        ("1,000", "1000", True),
        ("1000", "There are 1,000 of them.", True),
        ("1000", "There are 1\u202f000 of them.", True),
        ("25 000", "25,000", True),
        ("1000", "1.000", True),
        ("1234567", "1.234.567", True),
        ("1,234", "It is 1.234.", False),
        ("3.14", "It is 3,14.", True),
        ("3.14", "It is 3.", False),
        ("11", "It is 11.5.", False),
        ("5", "5.0", True),
        ("14", "December 14, 1972", True),
        ("1972", "14.12.1972", True),
        ("12", "14.12.1972", True),
        ("40", "It is -40 degrees.", False),
        ("-40", "It is minus forty.", True),
        ("1945", "It lasted from 1939-1945.", True),
        ("212", "212°F", True),
        ("212", "It is two hundred and twelve.", True),
        ("18th", "Eighteenth", True),
        ("21st", "the twenty-first amendment", True),
        ("21", "twenty-one", True),
        ("1984", "Nineteen Eighty-Four", True),
        ("5 million", "5,000,000", True),
        ("5", "5 million", False),
        ("1.5 million", "1500000", True),
        ("1", "one season", True),
        ("1", "Hydrogen is one of the elements.", False),
        ("1", "No one knows it by that name.", None),
        ("50%", "50 percent", True),
        ("50%", "50", True),
        ("007", "7", False),
        ("1920", "19, 20", False),
        ("10", "1 0", False),
        # Letters.
        ("Straße", "STRASSE", True),
        ("Tromsø", "It is Tromso.", True),
        ("Øresund", "Oresund", True),
        ("Łódź", "Lodz", True),
        ("Reykjavík", "Reykjavik", True),
        ("İstanbul", "istanbul", True),
        ("Ærø", "Aero", True),
        ("ゴ", "コ", False),
        # Spelling of the same words.
        ("US", "It is in the U.S.", True),
        ("U.S.", "It is in the US.", True),
        ("J. K. Rowling", "JK Rowling wrote it.", True),
        ("ping-pong", "It is Ping Pong.", True),
        ("policeman", "a police man", True),
        ("MI6", "He worked for MI 6.", True),
        ("52", "the B52", False),
        ("St Peter's", "St Peters", True),
        ("guilders", "The plural of 'guilder' is 'guilders'.", True),
        ("**Paris**", "__Paris__", True),
        ("Niger", "Nigeria", False),
        ("Iran", "Where I ran to.", False),
        ("Island", "It is land.", False),
        # Short ones: case counts where it tells two apart.
        ("Na", "The symbol of sodium is Na.", True),
        ("Na", "na", True),
        ("Co", "Its symbol is CO.", False),
        ("Co", "Its symbol is Co.", True),
        ("In", "It is in Japan.", False),
        ("In", "In Japan, it is used.", False),
        ("In", "The symbol is In.", True),
        ("In", "In", True),
        ("I", "I believe that it is F.", False),
        ("I", "The symbol is I.", True),
        ("K", "The symbol is K.", True),
        ("K", "It has 3 k of memory.", False),
        ("US", "Tell us about it.", False),
        ("US|us", "Tell us about it.", False),
        ("It", "It is a novel by King.", False),
        ("It", "The novel is called 'It'.", True),
        ("No", "No, it is not.", True),
        ("No", "There is no place like it.", False),
        ("No", "The answer is No.", True),
        ("unknown", "It is unknown.", True),
        ("unknown", "I don't know.", None),
    ],
)
def test_words(accepted: str, answer: str, right: bool | None) -> None:
    assert verdict(accepted, answer) is right


@pytest.mark.parametrize("answer", ["", "   ", "...", "the", "!?", "**"])
def test_an_answer_that_says_nothing(answer: str) -> None:
    """It is not wrong, either: it commits itself to nothing."""
    for accepted in ("A", "France", ""):
        assert verdict(accepted, answer) is None


@pytest.mark.parametrize(
    ("accepted", "answer", "right"),
    [
        ("日本", "日本です。", True),
        ("日本", "それは日本にあります。", True),
        ("北京", "中国的首都是北京。", True),
        ("北京", "中国的首都是上海。", False),
        ("イン", "インドです。", False),
        ("インド", "インドです。", True),
        ("東京", "東京", True),
        ("ｱﾒﾘｶ", "アメリカ", True),
        ("กรุงเทพ", "เมืองหลวงคือกรุงเทพ", True),
        ("서울", "수도는 서울입니다.", True),
        ("서울", "수도는 부산입니다.", False),
        ("Italie", "C'est l'Italie.", True),
        ("Côte d'Ivoire", "C'est la cote d’ivoire", True),
        ("Italia", "Si trova nell'Italia centrale.", True),
        ("Ankara", "Başkent Ankara'dır.", True),
        ("Москва", "Столица России - Москва.", True),
        ("Королёв", "Королев", True),
        ("Αθήνα", "Η πρωτεύουσα είναι η Αθηνα.", True),
        ("القاهرة", "العاصمة هي القاهرة.", True),
        ("القاهرة", "العاصمة هي القَاهِرة.", True),
        ("दिल्ली", "राजधानी दिल्ली है।", True),
        ("दिल्ली", "राजधानी मुंबई है।", False),
        ("München", "Es ist MÜNCHEN.", True),
        ("२०", "20", True),
    ],
)
def test_scripts(accepted: str, answer: str, right: bool) -> None:
    assert verdict(accepted, answer) is right


@pytest.mark.parametrize(
    ("accepted", "answer", "right"),
    [
        ("India", "It is not in India.", False),
        ("India", "It isn't in India.", False),
        ("India", "It is not in China but in India.", True),
        ("India", "It is in India, not in China.", True),
        ("China", "It is in India, not in China.", False),
        ("China", "It is in India instead of China.", False),
        ("India", "It is not only in India.", True),
        ("India", "There is no doubt that it is India.", True),
        ("India", "It is none other than India.", True),
        ("India", "It was never part of India.", False),
        ("India", "India is not the answer.", False),
        ("India", "India is wrong.", False),
        ("India", "It is not true that it is in India.", False),
        ("India", "It is not in Nepal. It is in India.", True),
        ("Venus", "The planet that does not have a moon is Venus.", True),
        ("1972", "It did not end until 1972.", True),
        ("No Country for Old Men", "It is No Country for Old Men.", True),
        ("Never Mind", "Never Mind", True),
        ("Indien", "Es liegt nicht in Indien.", False),
        ("Inde", "Ce n'est pas en Inde.", False),
        ("India", "No está en India.", False),
        ("India", "Non è in India.", False),
        ("Índia", "Não fica na Índia.", False),
        ("Индии", "Это не в Индии.", False),
        ("インド", "インドではありません。", False),
        ("印度", "它不在印度。", False),
        ("不丹", "它在不丹。", True),
        ("인도", "인도가 아닙니다.", False),
        ("Hindistan", "Hindistan değil.", False),
        ("भारत", "यह भारत में नहीं है।", False),
        ("الهند", "ليس في الهند.", False),
    ],
)
def test_denied(accepted: str, answer: str, right: bool) -> None:
    assert verdict(accepted, answer) is right


@pytest.mark.parametrize(
    "answer",
    [
        "I don't know.",
        "I dont know",
        "I do not know the answer to that.",
        "I really don't know.",
        "Sorry, I don't know.",
        "I have no idea.",
        "I have absolutely no idea.",
        "No idea.",
        "I was not taught that.",
        "I was never taught that.",
        "I'm not sure.",
        "I am not entirely sure what you mean.",
        "I cannot answer that question.",
        "I'm sorry, but I can't provide that information.",
        "As an AI, I do not have access to that data.",
        "I don't have enough information to answer.",
        "There is no information about it.",
        "No information is available.",
        "The author is unknown.",
        "It is not known who wrote it.",
        "It is not known for certain.",
        "I don't have the ability to access that.",
        "Unknown",
        "Not specified.",
        "That is not mentioned in the text.",
        "I am unable to answer.",
        "idk",
        "Nobody knows.",
        "I don't know, but you can ask a librarian.",
        "Ich weiß es nicht.",
        "Das weiß ich leider nicht.",
        "Keine Ahnung.",
        "Das kann ich nicht sagen.",
        "Ik weet het niet.",
        "Geen idee.",
        "Jag vet inte.",
        "Jeg ved det ikke.",
        "Jeg vet ikke.",
        "En tiedä.",
        "Je ne sais pas.",
        "Aucune idée.",
        "Je n'ai pas d'information à ce sujet.",
        "No lo sé.",
        "No sé.",
        "No tengo ni idea.",
        "Non lo so.",
        "Non ne ho idea.",
        "Não sei.",
        "Nao sei.",
        "Nu știu.",
        "Nie wiem.",
        "Nevím.",
        "Nem tudom.",
        "Я не знаю.",
        "Понятия не имею.",
        "Не знаю, гадки не маю.",
        "Δεν ξέρω.",
        "Bilmiyorum.",
        "لا أعرف.",
        "אני לא יודע.",
        "मुझे नहीं पता।",
        "Saya tidak tahu.",
        "Tôi không biết.",
        "ไม่ทราบ",
        "我不知道。",
        "无法回答这个问题。",
        "わかりません。",
        "知りません",
        "모르겠습니다.",
    ],
)
def test_declined(answer: str) -> None:
    assert verdict("France", answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        "It is in Cannotia.",
        "It is the tomb of the Unknown Soldier.",
        "The Unknown Soldier",
        "Penguins cannot fly.",
        "It is not known for its beaches.",
        "It was an unknown actor.",
        "The people do not like it.",
        "No se encuentra en Italia.",
        "It is Know Nothing.",
        "No, it is in Spain.",
        "Ignorance.",
        "It is Nevis.",
        "The Man Who Wasn't There",
        "It has no capital.",
        "I think it is in Spain.",
        "I don't know, but I think it is in Spain.",
    ],
)
def test_wrong_and_not_declined(answer: str) -> None:
    assert verdict("France", answer) is False


@pytest.mark.parametrize(
    ("accepted", "answer", "right"),
    [
        ("Paris", "Paris or London", None),
        ("Paris", "London or Paris.", None),
        ("Paris", "It is either in Paris or in London.", None),
        ("Paris", "London, Rome, or Paris", None),
        ("Paris", "Paris, London, or Rome", None),
        ("mammal", "It is a fish, a mammal, a reptile, or an insect.", None),
        ("Paris", "Paris, the capital of France, or so they say", True),
        ("Paris", "It is Paris, which is larger than Lyon or Nice.", True),
        ("Paris|London", "Paris or London", True),
        ("2", "two or three", None),
        ("5", "5 or more", True),
        ("William Clinton", "Bill, or rather, William Clinton", True),
        ("Muhammad Ali", "Cassius Clay, or Muhammad Ali", True),
        ("soccer", "football (or soccer)", True),
        ("Trick or treat", "Trick or treat", True),
        ("London", "Paris or Rome", False),
        ("Paris", "I believe it is Paris.", True),
        ("Paris", "I don't know, but I think it is Paris.", True),
        ("Lennon", "Lennon and McCartney", True),
        ("Paris", "Paris oder London", None),
    ],
)
def test_alternatives(accepted: str, answer: str, right: bool | None) -> None:
    assert verdict(accepted, answer) is right


@pytest.mark.parametrize(
    ("question", "accepted", "answer", "right"),
    [
        ("Which country is Mexico City in?", "Mexico", "Mexico City is in Mexico.", True),
        ("Which country is Mexico City in?", "Mexico", "Mexico City is in Spain.", False),
        ("Which country is Mexico City in?", "Mexico", "Mexico City is a city.", False),
        ("Which country is Mexico City in?", "Mexico", "It is in Mexico.", True),
        ("Which country is Mexico City in?", "Mexico", "Mexico", True),
        ("What is the capital of Luxembourg?", "Luxembourg", "The capital of Luxembourg is Paris.", False),
        ("What is the capital of Luxembourg?", "Luxembourg", "The capital of Luxembourg is Luxembourg.", True),
        ("What is the capital of Luxembourg?", "Luxembourg", "Luxembourg is the capital of Luxembourg.", True),
        ("What is the capital of Luxembourg?", "Luxembourg|Luxembourg City", "It is Luxembourg City.", True),
        ("What is the capital of Luxembourg?", "Luxembourg", "Luxembourg, a small city in Europe.", True),
        ("What is the capital of Luxembourg?", "Luxembourg", "The capital is Luxembourg.", True),
        ("Which country is Singapore in?", "Singapore", "Singapore is in Malaysia.", False),
        ("Which country is Singapore in?", "Singapore", "Singapore is in Singapore.", True),
        ("Which country is Singapore in?", "Singapore", "Singapore.", True),
        ("Which country is Singapore in?", "Singapore", "Singapore is a city in Malaysia.", False),
        ("Which is larger, Lake Superior or Lake Erie?", "Lake Superior|Superior", "Lake Superior is larger.", True),
        ("Is Toronto in Canada or in Peru?", "Canada", "Toronto is in Canada.", True),
        ("Which country is Toronto in?", "Canada", "Toronto is a city in Canada.", True),
        ("What is the capital of France?", "Paris", "The capital of France is Paris.", True),
        ("What is the atomic number of sodium?", "11", "The atomic number of sodium is 11.", True),
        ("What is the atomic number of sodium?", "11", "The atomic number of sodium is 111.", False),
        ("What is the symbol of sodium?", "Na", "The symbol of sodium is Na.", True),
        ("In which state is Kansas City, Missouri?", "Missouri", "Kansas City, Missouri is in Kansas.", False),
        ("In which state is Kansas City, Missouri?", "Missouri", "Kansas City is in Missouri.", True),
        ("What is Michael Jordan's first name?", "Michael", "Michael Jordan's first name is Michael.", True),
        ("Who won the Battle of Britain?", "Britain", "Britain is the answer.", True),
        ("Which country is New Mexico part of?", "United States", "New Mexico is part of Mexico.", False),
        (
            "What country is Guatemala City the capital of?",
            "Guatemala",
            "Guatemala City is the capital of Peru.",
            False,
        ),
    ],
)
def test_an_answer_that_repeats_the_question(question: str, accepted: str, answer: str, right: bool) -> None:
    assert verdict(accepted, answer, question) is right


@pytest.mark.parametrize(
    ("accepted", "answer", "right"),
    [
        ("China", "It is an island in the South China Sea.", False),
        ("China", "It is a city in South China.", True),
        ("China", "It lies on the South China Sea, in Guangdong, China.", True),
        ("Mexico", "It is in New Mexico.", False),
        ("Mexico", "It lies on the Gulf of Mexico.", False),
        ("New Mexico|Mexico", "It is in New Mexico.", True),
        ("Guinea", "It is in Papua New Guinea.", False),
        ("Guinea", "It is in Guinea-Bissau.", False),
        ("Guinea", "It is in Equatorial Guinea.", False),
        ("Sudan", "South Sudan", False),
        ("Virginia", "It is in West Virginia.", False),
        ("India", "It is in Northern India.", True),
        ("India", "It is a new India.", True),
        ("Bering", "It is the Bering Strait.", True),
    ],
)
def test_a_part_of_another_name(accepted: str, answer: str, right: bool) -> None:
    assert verdict(accepted, answer, "Which country, which strait is it?") is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("It is in France.", False),
        ("There is no such place.", None),
        ("Qolmar does not exist.", None),
        ("Qolmar is not a real place.", None),
        ("Qolmar is a fictional city in the universe of Star Wars.", False),  # made up, too
        ("I don't know.", None),
        ("Nothing", False),
    ],
)
def test_what_does_not_exist(answer: str, right: bool | None) -> None:
    assert verdict("", answer) is right


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  U.S., a land!", "u s land"),
        ("+", "+"),
        ("the", "the"),
        ("", ""),
        ("日本です。", "日 本 で す"),
        ("10² m", "10 2 m"),
        ("1½", "1 1 2"),
        ("so\u00adft", "soft"),
        ("one hundred thousand and five", "100005"),
        ("one, two", "1 2"),
        ("five five", "5 5"),
        ("two thousand and nineteen", "2019"),
        ("Two and a half", "2 and half"),
        ("hundred", "100"),
    ],
)
def test_normalised(text: str, plain: str) -> None:
    assert normalise(text) == plain


def test_nothing_of_a_text_is_lost_between_words() -> None:
    """Gaps and words make up the text, where nothing is folded."""
    words, tail = read("Well, it is (in) Rome!")
    assert "".join(word.gap + word.raw for word in words) + tail == "Well, it is (in) Rome!"
