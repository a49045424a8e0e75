# What a person types; the work is done by scripts/. Run it as your own user: it builds as you, and
# asks for sudo where interfaces are made.
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help demo test bench chart fuzz mutants clean

help:
	@echo "make demo   a node does its whole job on real traffic, in network namespaces; 2 minutes"
	@echo "            DEMO_ARGS=--keep leaves it up to play with"
	@echo "make test   everything that must hold: lints, all tests, models, benchmarks kept alive"
	@echo "make bench  measures; BENCH_ARGS='SUBCOMMAND OPTION...' runs one benchmark"
	@echo "make chart  holds deploy/chart to deploy/kubernetes and both to Kubernetes; needs helm, kubernetes-validate"
	@echo "make fuzz   fuzzes every parser, FUZZ_SECONDS=60 for each"
	@echo "make mutants  makes the policy compiler wrong, and sees that its tests notice; 15 minutes"
	@echo "make clean  removes what was built"

demo:
	@scripts/demo.sh $(DEMO_ARGS)

test:
	@scripts/test.sh

bench:
	@scripts/bench.sh $(BENCH_ARGS)

chart:
	@cargo test --locked -p xskiff-tests --test chart

fuzz:
	@scripts/fuzz.sh $(FUZZ_SECONDS)

mutants:
	@scripts/mutants.sh

clean:
	@cargo clean
