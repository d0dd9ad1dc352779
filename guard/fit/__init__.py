"""From questions to a probe bundle: ask, judge, collect, train, calibrate, measure."""
