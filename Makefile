# The commands of the book. Each can be run again at any time: what is up to date is left as it is.
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
BIN = $(VENV)/bin
READY = $(VENV)/ready
# What the tests read, and the mark that all of them passed.
SOURCES = notebooks/. gpt2lib/. tests/. tools/. book/. .github/. .ci/. *.py *.md *.toml *.txt *.yml Makefile
TESTED = _build/tested
STAGES = check-export lint test book links

.PHONY: help install book serve test demo space train gpu-run export check $(filter-out test book,$(STAGES)) requirements address clean

help:
	@echo "make book      install into $(VENV), run the notebooks, build the site into _build/html"
	@echo "make serve     show the site on http://127.0.0.1:$(PORT)"
	@echo "make test      run every notebook and every test"
	@echo "make demo      talk to the model that ships with the package"
	@echo "make space     write a Hugging Face Space with that model into _build/space"
	@echo "make train     train the nano model into runs/nano; goes on where it stopped"
	@echo "make gpu-run   train GPT-2 on a machine with CUDA, nine minutes a call; installs nothing"
	@echo "make export    tidy notebooks/ and write gpt2lib/ from them"
	@echo "make check     everything that CI checks"
	@echo "make clean     delete what was built (not $(VENV), not runs/)"

install: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit( \
	'The book needs Python 3.11, 3.12 or 3.13; $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12' % v)"
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the packages of requirements.txt into $(VENV): several minutes the first time."
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

book: $(READY)
	@$(BIN)/python tools/outputs.py
	$(BIN)/jupyter-book build . -W -n --keep-going
	@$(BIN)/python tools/workbook.py _build/html/workbook
	@echo "The book is in _build/html. To read it: make serve"

serve: $(READY)
	@test -f _build/html/index.html || $(MAKE) book
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

# Passes at once while nothing has changed since all tests passed; ALL=1 runs them in any case.
test: $(if $(ALL),rerun) $(TESTED)
	@echo "Every notebook and test passes. To run them again: make test ALL=1"

$(TESTED): $(READY) $(shell find $(SOURCES) -name __pycache__ -prune -o -print)
	$(BIN)/python -m pytest --nbmake notebooks/ book/ tests/ --durations=15
	@touch $@

.PHONY: rerun
rerun:
	@rm -f $(TESTED)

demo: $(READY)
	$(BIN)/python app.py

space: $(READY)
	$(BIN)/python tools/space.py

train: $(READY)
	$(BIN)/gpt2 train --preset nano --out runs/nano

# Needs what tools/gpu_run.py names, in $(PYTHON) itself.
gpu-run:
	$(PYTHON) tools/gpu_run.py

export: $(READY)
	$(BIN)/ruff format --quiet notebooks book
	$(BIN)/python tools/export.py

check-export: $(READY)
	$(BIN)/ruff format --quiet notebooks book
	$(BIN)/python tools/export.py --check

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

links:
	$(BIN)/python tools/check_links.py _build/html

check: $(READY)
	@rm -f $(VENV)/seconds; for stage in $(STAGES); do \
	  start=$$(date +%s); $(MAKE) $$stage || exit 1; \
	  echo "$$(($$(date +%s) - start)) s	make $$stage" >> $(VENV)/seconds; done; \
	echo "All checks passed. Slowest first:"; sort -rn $(VENV)/seconds

# Keeps the versions it can; FLAGS=--upgrade takes the newest ones.
requirements:
	@cp requirements.txt $(VENV)/pins
	$(BIN)/uv pip compile --quiet pyproject.toml --output-file $(VENV)/pins $(FLAGS)
	@{ grep '^#' requirements.txt; grep -v -E '^(cuda|nvidia|triton)' $(VENV)/pins; } > $(VENV)/new
	@cmp -s $(VENV)/new requirements.txt || cp $(VENV)/new requirements.txt

address: $(READY)
	$(BIN)/python tools/set_address.py $(URL)
	$(BIN)/python tools/export.py

clean:
	rm -rf _build build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./.*" -prune -exec rm -rf {} +
