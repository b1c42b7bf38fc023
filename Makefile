# streamcqsa. `make` lists the targets. Only Go is needed, unless a target says
# otherwise.

GO      ?= go
BIN     := bin/streamcqsa
PACKAGE := ./cmd/streamcqsa
DEMO    := .cache/demo

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: help build test test-short test-race test-long test-kill soak test-arm64 test-interop test-torch fuzz lint generate check-generated vet-ports demo bench notices clean \
  cuda check-cuda remake-cuda build-cuda vet-cuda test-cuda test-cuda12 test-emulated gpu-tests cuda-symbols

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/streamcqsa
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN) $(PACKAGE)

test: ## all tests but the slow ones
	$(GO) vet ./...
	$(GO) test -timeout 20m ./...

test-short: ## the quickest tests
	$(GO) test -short ./...

test-race: ## the quick tests under the race detector (needs a C compiler)
	$(GO) test -race -short -timeout 20m ./...

test-long: ## the slow tests too: large files, memory limits, real devices' limits (Linux, as root for all of them)
	$(GO) test -timeout 60m ./pkg/stream ./cmd/streamcqsa -args -long

KILLS ?= 1000
test-kill: ## kill runs KILLS times (default 1000) at random instants, and compare what comes of them bit by bit (Linux)
	$(GO) test -count 1 -timeout 120m -run TestKill -v ./cmd/streamcqsa -args -kills $(KILLS)

SOAK ?= 30m
soak: ## random problems, killed at random or not, against float64, for SOAK (default 30m); a failure tells the seed (Linux)
	cd cmd/streamcqsa && $(GO) test -count 1 -timeout 0 -run TestSoak -args -soak $(SOAK)

# Emulation does not report the address of a fault, which TestFault is about.
QEMU ?= qemu-aarch64-static
test-arm64: ## the quick tests of the portable kernel on an emulated arm64 (needs qemu-user-static)
	CGO_ENABLED=0 GOARCH=arm64 $(GO) test -short -exec $(QEMU) -skip 'TestFault|TestRowsFarApart' ./pkg/cpu ./pkg/divide ./pkg/attention

test-interop: ## against real NumPy, safetensors and ml_dtypes (needs Python 3.9 or later)
	bash interop/run.sh

test-torch: ## against PyTorch: its files and its results (needs Python; PyTorch is several GB)
	bash interop/run.sh torch

# go test -fuzz takes one target at a time. FUZZTIME may be a time (10m) or a
# number of iterations (20000x).
FUZZTIME ?= 60s
fuzz: ## every fuzz target for FUZZTIME (default 60s)
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "$$pkg $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; \
	done

lint: ## gofmt, vet, staticcheck
	@out=$$(gofmt -l cmd pkg cuda); if [ -n "$$out" ]; then echo "not gofmted: $$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) mod tidy -diff
	$(GO) run $(STATICCHECK) ./...

generate: ## generate the assembly of pkg/cpu and the wrappers of cuda again
	$(GO) generate ./pkg/cpu ./cuda

check-generated: generate ## fail if the assembly is not what its generator makes
	git diff --exit-code -- pkg/cpu cuda
	cd pkg/cpu/_generate && $(GO) vet ./... && test -z "$$(gofmt -l .)"

vet-ports: ## vet for the other systems and processors that should build
	GOOS=linux GOARCH=arm64 $(GO) vet ./...
	GOOS=darwin GOARCH=arm64 $(GO) vet ./...

# The environment of `go ... -tags cuda`: where cuda.h is, which is fetched if the
# machine has none. See cuda/toolkit.sh.
WITH_CUDA = env=$$(bash cuda/toolkit.sh env) && eval "$$env" &&
CUDA_PACKAGES := ./cuda/... ./pkg/gpu/... ./cmd/streamcqsa

build-cuda: ## build bin/streamcqsa with the CUDA device (needs a C compiler; no GPU, no nvcc)
	$(WITH_CUDA) $(GO) build -tags cuda -trimpath -o $(BIN) $(PACKAGE)

vet-cuda: ## vet and staticcheck with the CUDA device
	$(WITH_CUDA) $(GO) vet -tags cuda ./... && $(GO) run $(STATICCHECK) -tags cuda ./...

test-cuda: ## the tests of the CUDA device; skipped without a driver, unless STREAMCQSA_TEST_GPU=1 (SHORT=-short: the quick ones)
	$(WITH_CUDA) $(GO) test -count 1 $(SHORT) -tags cuda $(CUDA_PACKAGES)

test-cuda12: ## build and test the driver layer with the headers of CUDA 12 (fetches them)
	env=$$(bash cuda/toolkit.sh env12) && eval "$$env" && $(GO) test -count 1 -tags cuda ./pkg/gpu/...

# What takes long there is left out; EMULATED=. leaves nothing out.
EMULATED ?= Exact[TS]|Fast|Rows|Far|ValuesIn|NaN|Scores|Infinity|Footprint|Events|Stats|Float64|State|Fault
test-emulated: ## conformance tests of the CUDA device without a GPU: the kernels run on the CPU (needs g++ 12, AVX2)
	$(WITH_CUDA) bash cuda/emulate/test.sh .cache/emulated "$$(bash cuda/toolkit.sh include)" '$(EMULATED)'

gpu-tests: ## the same tests as binaries, in .cache/gpu-tests, to copy to a machine with a GPU
	$(WITH_CUDA) bash cuda/gpu-tests.sh .cache/gpu-tests

cuda: ## compile the CUDA kernels that have changed; V=1 tells what they take (fetches nvcc if there is none)
	nvcc=$$(bash cuda/toolkit.sh nvcc) && $(GO) run ./cuda/internal/compile $(if $(V),-v) -nvcc "$$nvcc"

check-cuda: ## fail if the kernels' sources have changed since they were compiled
	$(GO) test -count 1 ./cuda

remake-cuda: ## compile all CUDA kernels again, and fail if that makes a difference
	nvcc=$$(bash cuda/toolkit.sh nvcc) && $(GO) run ./cuda/internal/compile -all -nvcc "$$nvcc"
	git diff --exit-code -- cuda/kernels

DRIVER := pkg/gpu/internal/driver
cuda-symbols: ## list again what the binary wants of libcuda: after a change of gorgonia.org/cu or of its use
	bash $(DRIVER)/symbols.sh > $(DRIVER)/symbols.h.new
	mv $(DRIVER)/symbols.h.new $(DRIVER)/symbols.h

demo: build ## generate tensors, plan, run divided under a small budget, verify
	@mkdir -p $(DEMO)
	$(BIN) gen --shape 1,4,4096,64 --dtype f32 --seed 1 --force $(DEMO)
	$(BIN) plan --q $(DEMO)/q.npy --k $(DEMO)/k.npy --v $(DEMO)/v.npy --layout bhnd --causal \
	  --mem-budget 3MiB --divide cqs --chunks 13 --svg $(DEMO)/plan.svg
	$(BIN) run --q $(DEMO)/q.npy --k $(DEMO)/k.npy --v $(DEMO)/v.npy --layout bhnd --causal \
	  --mem-budget 3MiB --divide cqs --chunks 13 -o $(DEMO)/o.npy --lse $(DEMO)/lse.npy
	$(BIN) verify --q $(DEMO)/q.npy --k $(DEMO)/k.npy --v $(DEMO)/v.npy --layout bhnd --causal \
	  --o $(DEMO)/o.npy --lse $(DEMO)/lse.npy --rows 200

bench: build ## measure this machine's kernel
	$(BIN) bench

notices: ## collect the licences of everything in the binary
	bash docs/notices.sh > THIRD_PARTY_NOTICES

clean: ## remove what was built and generated
	rm -rf bin .cache
