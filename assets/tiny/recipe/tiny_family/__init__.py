"""The recipe of the tiny family: from pictures to a base, a reward and two judges, on two CPU cores."""
