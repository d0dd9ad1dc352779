"""Past one machine: what the guard costs on an H100 on paper, what one API process carries, and a fleet simulated."""
