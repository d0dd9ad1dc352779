"""The guard beside other ways to tell wrong answers, on the same model and the same questions."""
