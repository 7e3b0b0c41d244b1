"""The parts that know no family: types, loop, guidance, tasks, attention, media."""
