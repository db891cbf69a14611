# Two commands do everything on a fresh machine: `make eval` (the main job) and `make test` (what CI runs).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs
# More threads than two make the small models of this repository slower, not faster.
export OMP_NUM_THREADS ?= 2
# The same bits wherever a tensor lies in memory; brushnet/__init__.py says why, and sets it for every other way to start.
export MKL_CBWR ?= AUTO,STRICT

.PHONY: eval test check format clean tiny

eval: $(VENV)/.eval
	$(BIN)/brushbench eval --jobs 2 --model brushnet --model latent-copy --model telea --model copy --model vae --model oracle \
		--bench shapes --limit 64 --out $(OUT)/shapes
	$(BIN)/brushbench report $(OUT)/shapes --output $(OUT)/report

test: check
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Retrain the embedded models from nothing and put them into data/tiny: hours. The same command goes on where it stopped.
TRAIN = $(BIN)/brushbench train
TINY = $(TRAIN) tiny
FAST := --mixed-precision bf16 --resume
BRANCH := --batch-size 32 --half --save-every 100 $(FAST)
FIRST := $(OUT)/tiny/first
JUDGE = $(TINY) judges --cache-scenes 0 $(FAST)
LAST := --warmup 30 --ema-decay 0.99 $(BRANCH)
tiny: $(VENV)/.dev
	$(TINY) vae --out $(OUT)/tiny/vae $(FAST)
	$(TINY) attributes --vae $(OUT)/tiny/vae/model --out $(OUT)/tiny/attributes --resume
	$(TINY) text-to-image --vae $(OUT)/tiny/vae/model --out $(OUT)/tiny/text_to_image --cache-latents 64000 $(FAST)
	$(TINY) collect $(OUT)/tiny
	$(TRAIN) brushnet --out $(FIRST)/segmentation --blobs 0.33 --learning-rate 5e-4 --max-steps 2600 $(BRANCH)
	$(TRAIN) brushnet --out $(FIRST)/random --masks random --learning-rate 1e-3 --warmup 50 --max-steps 3400 \
		--init-from $(FIRST)/segmentation/model $(BRANCH)
	$(TRAIN) brushnet --out $(OUT)/tiny/brushnet_segmentation --blobs 0.33 --learning-rate 5e-4 --max-steps 3200 \
		--init-from $(FIRST)/segmentation/model $(LAST)
	$(TRAIN) brushnet --out $(OUT)/tiny/brushnet_random --masks random --learning-rate 6e-4 --max-steps 4000 \
		--init-from $(FIRST)/random/model $(LAST)
	$(TINY) sd-inpainting --out $(OUT)/tiny/sd_inpainting $(FAST)
	$(TINY) controlnet --out $(OUT)/tiny/controlnet --learning-rate 1e-3 $(FAST)
	$(TINY) powerpaint --out $(OUT)/tiny/powerpaint --share --init-from $(OUT)/tiny/sd_inpainting/model --max-steps 4000 \
		--warmup 30 --ema-decay 0.99 $(FAST)
	for model in clip aesthetic lpips; do $(JUDGE) --which $$model --out $(OUT)/tiny/metrics || exit 1; done
	$(JUDGE) --which hps --out $(FIRST) --clip $(OUT)/tiny/metrics/clip/model
	$(JUDGE) --which hps --out $(OUT)/tiny/metrics --init-from $(FIRST)/hps/model --learning-rate 4e-4 --max-steps 3400
	$(JUDGE) --which image_reward --out $(FIRST)
	$(JUDGE) --which image_reward --out $(OUT)/tiny/metrics --init-from $(FIRST)/image_reward/model \
		--learning-rate 4e-4 --max-steps 8400
	$(TINY) collect $(OUT)/tiny
	$(BIN)/python tests/benchmarks/tiny_base.py
	$(BIN)/python tests/benchmarks/tiny_brushnet.py --out $(OUT)/tiny/measured
	$(BIN)/python tests/benchmarks/tiny_metrics.py

clean:
	rm -rf $(VENV) runs dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.eval: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[photos]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.eval

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "brushbench needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
