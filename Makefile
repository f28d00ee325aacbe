# Everything a fresh machine needs is Python 3.11+ and make: each target creates .venv from the pinned requirements first.
SHELL := /bin/bash
PYTHON ?= python3
AS_OF ?= 2017-12-01
CONFIG ?= jobs/demo_shop.toml
export UV_COMPILE_BYTECODE = 1
unexport PYTHONDONTWRITEBYTECODE# without compiled modules TensorFlow takes twice as long to import

.PHONY: cluster-up cluster-down nightly backtest shops test test-fast pythons drill lint types audit format docs bench pins here clean

nightly: .venv/ready
	.venv/bin/python -m jobs.demo_shop --out var/shop
	.venv/bin/python -m jobs.nightly --config $(CONFIG) --as-of $(AS_OF)

backtest: .venv/ready
	.venv/bin/python -m jobs.demo_shop --out var/shop
	.venv/bin/python -m jobs.backtest --config $(CONFIG) --as-of 2017-10-08 --horizon-days 91 \
		--out var/metrics.json --plot var/reliability.png

# Planted shops of every kind, each with default settings.
shops: .venv/ready
	.venv/bin/python -m jobs.shops --out var/shops.json

test: .venv/ready
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 25

# The tests of the files that differ from the last commit; where none does, all that need no Ray.
test-fast: .venv/ready
	@changed=$$( (git diff --name-only HEAD; git ls-files --others --exclude-standard) | sed -nE \
		-e 's:^recsys/((.+/)?)([a-z_]+)\.py$$:tests/\1test_\3.py:p' -e 's:^(jobs|cluster)/([a-z_]+)\.py$$:tests/\1/test_\2.py:p' \
		-e '/^tests\/(.+\/)?test_[a-z_]+\.py$$/p' | sort -u | while read -r file; do [ ! -f $$file ] || echo $$file; done); \
	(set -x; .venv/bin/python -m pytest -q -m "not ray and not long" $$changed) || { [ $$? = 5 ] && echo "all tests of $$changed need Ray: make test"; }

# Those without Ray on each Python that we support and this machine has.
pythons: .venv/ready
	.ci/pythons

drill: .venv/ready
	.venv/bin/python -m pytest -m "drill or long" --numprocesses 2 --dist loadfile --no-loadscope-reorder -v -rP --durations=0

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/ready
	.venv/bin/pyrefly check

# Known vulnerabilities of the pins that a cluster runs on; where no source of advisories answers, that is said.
audit: .venv/ready
	.venv/bin/python .ci/audit.py

format: .venv/ready
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# The reference of the settings, docs/settings.md, from the settings classes; a test says when it is stale.
docs: .venv/ready
	.venv/bin/python -m jobs.docs

bench: .venv/ready
	.venv/bin/python -m jobs.bench

cluster-up: .venv/ready
	.venv/bin/python -m cluster.local up $(if $(TLS),--tls)

cluster-down: .venv/ready
	.venv/bin/python -m cluster.local down

# uv makes the environment; where the machine has none, pip fetches it into a folder of its own.
.venv/ready: requirements/dev.txt Makefile
	@uv=$$(command -v uv) || { $(PYTHON) -m venv .venv/uv && .venv/uv/bin/pip install --quiet uv && uv=.venv/uv/bin/uv; }; \
	set -ex; \
	test -x .venv/bin/python || "$$uv" venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" .venv; \
	"$$uv" pip install --quiet --python .venv/bin/python --require-hashes -r requirements/dev.txt
	@$(MAKE) --no-print-directory here
	@touch $@

# The environment knows this folder, so `.../.venv/bin/python -m jobs.NAME` works from any other.
here:
	@.venv/bin/python -c 'import pathlib, sys, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "recsys.pth").write_text(sys.argv[1] + "\n")' "$(CURDIR)"

# Pins carry hashes and no addresses. What runs is what was tested: the runtime's are among those of development.
COMPILE = PATH=".venv/uv/bin:$$PATH" uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header pyproject.toml
pins: .venv/ready
	$(COMPILE) --extra demo --extra export --extra iceberg --group dev -o requirements/dev.txt
	$(COMPILE) --constraints requirements/dev.txt -o requirements/runtime.txt

clean:
	rm -rf var
