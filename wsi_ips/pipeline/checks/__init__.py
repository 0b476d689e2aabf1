"""Before a cohort is worked on: what can be read, what it will cost, which slides may not be in two parts."""
