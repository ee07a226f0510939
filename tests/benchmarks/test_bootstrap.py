def test_the_decision_and_its_parts_are_timed_for_every_prompt_and_metric(benchmark_named):
    bootstrap = benchmark_named("bootstrap")
    table = bootstrap.figures(40, 2, ["metric_0", "metric_1"])
    assert table.num_rows == 2 * 40 * 2 * 2
    pairs = bootstrap.pair_up(table, bootstrap.SOURCE)
    assert (len(pairs.prompts), len(pairs.seeds), pairs.metrics) == (40, 80, ["metric_0", "metric_1"])
    assert [pairs.styles.count(style) for style in bootstrap.STYLES] == [10, 10, 10, 10]

    lines = {line["timed"]: line for line in bootstrap.timed(40, 2, 2, 2000)}
    assert lines.keys() == {"import", "decision", "pairing", "intervals"}
    decision, pairing, intervals = (lines[name] for name in ("decision", "pairing", "intervals"))
    assert (decision["rules"], pairing["pairs"], intervals["intervals"]) == (4, 80, 4)
    assert decision["wall_seconds"] > 0
    assert decision["cpu_seconds"] > pairing["cpu_seconds"] + intervals["cpu_seconds"], "they are parts of it"
