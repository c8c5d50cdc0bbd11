# Everything a person types. Each target sets the environment up first, which takes two minutes once and nothing after that.

SHELL := /bin/bash
BIN := .venv/bin
HOLDFAST_HOME ?= $(CURDIR)/.holdfast
KEEP ?=

.PHONY: help setup demo study-smoke up down test test-all lint clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## create .venv from the lock file
	@deploy/setup/install.sh

demo up down: export HOLDFAST_HOME := $(HOLDFAST_HOME)

demo: setup ## a continual training job through the whole service; KEEP=1 leaves the service running
	@$(BIN)/holdfast demo $(if $(filter-out 0,$(KEEP)),--keep)

study-smoke: export HOLDFAST_HOME := $(HOLDFAST_HOME)

study-smoke: setup ## a study in miniature: three arms, one order, one seed; its page is .holdfast/studies/smoke/report.html
	@rm -rf -- "$(HOLDFAST_HOME)/studies/smoke"
	@$(BIN)/holdfast study run deploy/studies/smoke.yaml --records "$(HOLDFAST_HOME)/studies/smoke/records"

up: setup ## start the service (Ray, API, scheduler, MLflow), with everything it knew before
	@$(BIN)/holdfast up

down: setup ## stop the service; unfinished jobs go on at the next start
	@$(BIN)/holdfast down

test: setup lint ## every test that takes less than a minute
	$(BIN)/python -m pytest tests -m "not slow and not gpu"

test-all: setup lint ## the slow ones too
	$(BIN)/python -m pytest tests -m "not gpu"

lint: setup ## import law and style
	$(BIN)/ruff check .
	$(BIN)/lint-imports

clean: ## stop the service and delete the environment and the caches; what the service stored stays
	@if [ -x $(BIN)/holdfast ]; then HOLDFAST_HOME="$(HOLDFAST_HOME)" $(BIN)/holdfast down; fi
	rm -rf -- .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf -- {} +
	@echo "Jobs, models and logs are kept in $(HOLDFAST_HOME); delete that folder by hand to lose them."
