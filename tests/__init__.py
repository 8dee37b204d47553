"""The tests, by what they need: nothing, a broker, real processes, faults, Docker."""
