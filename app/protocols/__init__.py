"""What each API asks and answers: options in, verdicts out."""
