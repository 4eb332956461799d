# make test   everything that must hold before a change lands; installs what it needs
# make quick  the same without fuzzing and the long tests
# make bench  benchmarks, beside the bare transport and failsafe-go

GO        ?= go
FUZZTIME  ?= 10000x
STATIC     = $(GO) tool -modfile=tools/go.mod staticcheck

.PHONY: test quick bench vet fuzz

test: vet
	$(GO) test -race ./...
	MESH_CHURN=60s $(GO) test -race -count=1 -run '^TestChurn$$' .
	MESH_ROTATE=60s $(GO) test -race -count=1 -run '^TestRotationUnderLoad$$' .
	cd policy/internal/oracle && $(GO) vet ./... && $(GO) test ./...
	cd meshgrpc/interop && $(GO) vet ./... && $(GO) test -race ./...
	cd bench && $(GO) vet ./... && $(GO) test ./...
	$(MAKE) fuzz
	$(GO) run ./examples/quickstart

quick: vet
	$(GO) test -race ./...

vet:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [ -n "$$unformatted" ]; then echo "gofmt: run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(STATIC) ./...

# go test fuzzes one target at a time. The length is a number of inputs: with a time, an input that is being tried when the
# time is up is taken for a failure now and then ("context deadline exceeded", without an input to show for it).
fuzz:
	@for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "fuzz $$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done; \
	done

bench:
	$(GO) test -run '^$$' -bench . -benchmem ./...
	cd bench && $(GO) test -run '^$$' -bench . -benchmem ./...
