# make test   everything that must hold before a change lands; installs what it needs
# make quick  the same without fuzzing and the long tests
# make stress the tests in a race with a busy machine, and on one processor; not part of CI, it takes long
# make vuln   known vulnerabilities of what is linked; needs https://vuln.go.dev
# make soak   ten minutes of each protocol while endpoints, documents and certificates change (MESH_SOAK=1m for a shorter one)
# make browser the page of package admin in Chromium, which it installs if it is missing; pictures go to $(ARTIFACTS)
# make servers the tests with a real Consul, a real Kubernetes API server, a real Jaeger and a real Prometheus
# make bench  benchmarks, beside the bare transport and failsafe-go

GO        ?= go
FUZZTIME  ?= 10000x
MESH_SOAK ?= 10m
RUNS      ?= 5
SPINNERS  ?= 4
ARTIFACTS ?= $(CURDIR)/artifacts
STATIC     = $(GO) tool -modfile=tools/go.mod staticcheck

# The limit is for a busy machine: the longest package takes two minutes on one that is not.
TEST       = $(GO) test -timeout 40m
RACE       = $(TEST) -race

VULN       = $(GO) tool -modfile=tools/go.mod govulncheck

.PHONY: test quick allocations soak bench vet fuzz stress vuln browser servers prometheus

test: vet allocations
	$(RACE) ./...
	MESH_CHURN=60s $(RACE) -count=1 -run '^TestChurn$$' .
	MESH_ROTATE=60s $(RACE) -count=1 -run '^TestRotationUnderLoad$$' .
	MESH_CALLS=2000000 $(TEST) -count=1 -run '^TestNobodyMakesSeriesWithoutBound$$' ./metrics
	cd policy/internal/oracle && $(GO) vet ./... && $(TEST) ./...
	cd meshgrpc/interop && $(GO) vet ./... && $(RACE) ./...
	cd tracing/interop && $(GO) vet ./... && $(RACE) ./...
	cd examples/metrics-otlp && $(GO) vet ./... && $(RACE) ./...
	cd examples/observability && $(GO) vet ./... && $(TEST) ./...
	cd bench && $(GO) vet ./... && $(TEST) ./...
	$(MAKE) servers
	$(MAKE) browser
	$(MAKE) fuzz
	$(GO) run ./examples/quickstart

# Tests with real servers. Consul, Jaeger, Kubernetes and istiod are built once, in minutes (more on a busy machine, hence the limit), into the user's cache folder; Prometheus is Debian's.
servers: prometheus
	cd dashboards && $(GO) vet ./... && $(TEST) ./...
	cd realservers && $(GO) vet ./... && $(RACE) -timeout 2h ./...

prometheus:
	@command -v prometheus >/dev/null && command -v promtool >/dev/null || { \
	apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends prometheus; } || \
	{ echo "prometheus and promtool are needed, and could not be installed: apt-get install prometheus, as root" >&2; exit 1; }

# Pictures are kept for whoever looks at the run.
browser:
	@command -v chromedriver >/dev/null && command -v chromium >/dev/null || \
		{ apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium chromium-driver; }
	MESH_CHROMIUM=1 MESH_ARTIFACTS=$(ARTIFACTS) $(TEST) -count=1 -v -run '^TestBrowser$$' ./admin

quick: vet allocations
	$(RACE) ./...

# The race detector makes sync.Pool drop what it is given, so these tests are not built with it.
allocations:
	$(TEST) -run Alloc . ./accesslog ./meshgrpc ./policy/route

soak:
	MESH_SOAK=$(MESH_SOAK) $(GO) test -count=1 -timeout 3h -v -run '^TestSoak$$' . ./meshgrpc

vet:
	@unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then echo "gofmt: run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(STATIC) ./...

# go test fuzzes one target at a time. The length is a number of inputs: with a time, an input that is being tried when the
# time is up is taken for a failure now and then ("context deadline exceeded", without an input to show for it). An input that
# is interesting is made smaller for up to a minute unless that is bounded, too. The targets are read from the files, since
# go test -list builds the tests of every package.
fuzz:
	@for dir in $$($(GO) list -f '{{.Dir}}' ./...); do \
		for target in $$(cat $$dir/*_test.go 2>/dev/null | sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p'); do \
			echo "fuzz $$dir $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$dir || exit 1; \
		done; \
	done

# Some processes spin meanwhile, so that every goroutine waits for a processor at every place once.
stress:
	@spinners=; trap 'kill $$spinners 2>/dev/null' EXIT; trap 'exit 1' INT TERM; \
	for i in $$(seq $(SPINNERS)); do (while :; do :; done) & spinners="$$spinners $$!"; done; \
	for run in $$(seq $(RUNS)); do \
		echo "run $$run of $(RUNS)"; \
		$(RACE) -count=1 ./... || exit 1; \
		MESH_ORDEAL=300 $(RACE) -count=1 -run '^TestEverythingIsGivenBack$$' . || exit 1; \
		GOMAXPROCS=1 $(RACE) -count=1 ./... || exit 1; \
	done

vuln:
	@$(VULN) ./... || { code=$$?; \
	[ $$code -eq 3 ] || echo "vuln: govulncheck had no answer: it needs https://vuln.go.dev" >&2; exit $$code; }

bench:
	$(GO) test -run '^$$' -bench . -benchmem ./...
	cd bench && $(GO) test -run '^$$' -bench . -benchmem ./...
