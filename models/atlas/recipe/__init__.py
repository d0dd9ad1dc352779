"""How atlas is made: facts, tokenizer, pre-training, chat tuning, card.

Run ``make atlas``. Everything is seeded; the only source of facts is the
``pycountry`` package, which carries the iso-codes database.
"""
