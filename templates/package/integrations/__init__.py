"""normgate in the engines that models run in; each module says what it was tested with."""
