# `make` or `make help` lists what there is.

PYTHON := .venv/bin/python
TESTS ?=

.PHONY: help setup lint test demo scenarios bench judge-sim corpus clean
.DEFAULT_GOAL := help

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: ## install what is needed and make .venv/bin/shadowtap
	@bash vagrant/provision.sh

lint: setup ## ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy -p vagrant

test: lint ## lint and every test; TESTS=tests/replay for some
	$(PYTHON) -m tests.run $(TESTS)

demo: setup ## a load balancer in a lab, mirrored to a shadow, and how the shadow compares
	@$(PYTHON) -m vagrant.lab.demo

scenarios: setup ## what can go wrong with a shadow, played in a lab; NAMES=leak for one, LONG=--long for half an hour of A/A
	@$(PYTHON) -m vagrant.lab.scenarios $(NAMES) $(LONG)

bench: setup ## the figures; takes minutes
	@$(PYTHON) -m tests.bench.run

judge-sim: setup ## the judge's false alarms and delays, by simulation; SHORT=--short for a minute of it
	@$(PYTHON) -m tests.judge_sim.run --jobs 2 $(SHORT)

corpus: setup ## score against the capture corpus
	$(PYTHON) tests/corpus/run.py

clean: ## remove what was made here, but not the system's packages
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist out *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
