package consul_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/consul/consultest"
	"github.com/nosidecar/mesh/internal/leak"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

// fake is an agent with the part of Consul's API that is used here. Real ones are in realservers.
type fake struct {
	*consultest.Agent

	services map[string][]*api.ServiceEntry // by name; "dc2/name" in another datacenter, "query/name" of a prepared query
	fail     map[string]int                 // status by name of the service, or 0
	filtered bool                           // everything is left out

	local   map[string]*api.AgentServiceRegistration // services registered with the agent, by ID
	slow    time.Duration                            // how long the catalog still lists what is deregistered
	log     []string                                 // requests to the agent's own endpoints
	reads   map[string]int                           // by name
	blocked map[string]int                           // by name
}

func newFake(t *testing.T) *fake {
	f := &fake{
		services: map[string][]*api.ServiceEntry{}, fail: map[string]int{},
		local: map[string]*api.AgentServiceRegistration{}, reads: map[string]int{}, blocked: map[string]int{},
	}
	f.Agent = consultest.New(t, f.answer)
	return f
}

// set sets the instances of a service.
func (f *fake) set(name string, entries ...*api.ServiceEntry) {
	f.Change(func() { f.services[name] = entries })
}

// count returns how often a service was read, and how many queries for it are blocked now.
func (f *fake) count(name string) (reads, blocked int) {
	f.Lock()
	defer f.Unlock()
	return f.reads[name], f.blocked[name]
}

func (f *fake) answer(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	switch {
	case strings.HasPrefix(path, "health/"):
		kind, name, _ := strings.Cut(strings.TrimPrefix(path, "health/"), "/")
		if kind == "connect" {
			name = "connect/" + name
		}
		if dc := r.URL.Query().Get("dc"); dc != "" {
			name = dc + "/" + name
		}
		f.health(w, r, name)
	case strings.HasPrefix(path, "query/"):
		f.query(w, strings.TrimSuffix(path, "/execute"))
	case path == "catalog/nodes":
		fmt.Fprint(w, `[{"Node": "n"}]`)
	default:
		f.agent(w, r, strings.TrimPrefix(path, "agent/"))
	}
}

func (f *fake) health(w http.ResponseWriter, r *http.Request, name string) {
	f.reads[name]++
	f.blocked[name]++
	defer func() { f.blocked[name]-- }()
	f.Await(w, r)
	if status := f.fail[name]; status != 0 {
		http.Error(w, "text", status)
		return
	}
	entries := f.services[name]
	if f.filtered {
		entries = nil
		w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
	}
	json.NewEncoder(w).Encode(append([]*api.ServiceEntry{}, entries...))
}

func (f *fake) query(w http.ResponseWriter, name string) {
	f.reads[name]++
	entries, ok := f.services[name]
	if !ok {
		http.Error(w, "query not found", http.StatusNotFound)
		return
	}
	answer := api.PreparedQueryExecuteResponse{Service: "of-the-query"}
	for _, e := range entries {
		answer.Nodes = append(answer.Nodes, *e)
	}
	w.Header().Set("X-Consul-Index", "1")
	json.NewEncoder(w).Encode(answer)
}

// agent answers what agents know without servers.
func (f *fake) agent(w http.ResponseWriter, r *http.Request, path string) {
	id := path[strings.LastIndex(path, "/")+1:]
	f.log = append(f.log, r.Method+" "+path)
	missing := func() { http.Error(w, "unknown "+id, http.StatusNotFound) }
	switch {
	case path == "service/register":
		var service api.AgentServiceRegistration
		if err := json.NewDecoder(r.Body).Decode(&service); err != nil || service.Namespace != "" {
			http.Error(w, "Request decode failed", http.StatusBadRequest)
			return
		}
		f.local[service.ID] = &service
		f.catalogLocked(service.Name)
	case strings.HasPrefix(path, "service/deregister/"):
		service := f.local[id]
		if service == nil {
			missing()
			return
		}
		delete(f.local, id)
		if f.slow == 0 {
			f.catalogLocked(service.Name)
		} else {
			time.AfterFunc(f.slow, func() {
				f.Lock()
				defer f.Unlock()
				f.catalogLocked(service.Name)
			})
		}
	case strings.HasPrefix(path, "service/"):
		if f.local[id] == nil {
			missing()
			return
		}
		json.NewEncoder(w).Encode(api.AgentService{ID: id})
	case strings.HasPrefix(path, "check/update/"):
		for _, s := range f.local {
			for _, c := range s.Checks {
				if c.CheckID == id {
					return
				}
			}
		}
		missing()
	default:
		http.Error(w, "not of this fake", http.StatusInternalServerError)
	}
}

// catalogLocked brings the catalog in line with the agent.
func (f *fake) catalogLocked(name string) {
	var entries []*api.ServiceEntry
	for _, s := range f.local {
		if s.Name == name {
			entries = append(entries, &api.ServiceEntry{
				Node:    &api.Node{Node: "n", Address: "10.0.0.1"},
				Service: &api.AgentService{ID: s.ID, Service: s.Name, Address: s.Address, Port: s.Port, Tags: s.Tags, Meta: s.Meta},
			})
		}
	}
	f.services[name] = entries
	f.ChangedLocked()
}

// requests returns what the agent was asked for since the last call, each once in a row.
func (f *fake) requests() []string {
	f.Lock()
	defer f.Unlock()
	log := slices.Compact(f.log)
	f.log = nil
	return log
}

// instance is an entry of the catalog, changed by the functions.
func instance(id string, port int, change ...func(*api.ServiceEntry)) *api.ServiceEntry {
	e := &api.ServiceEntry{
		Node:    &api.Node{Node: "n", Address: "10.0.0.1"},
		Service: &api.AgentService{ID: id, Service: "web", Port: port, Weights: api.AgentWeights{Passing: 1, Warning: 1}},
		Checks:  api.HealthChecks{{CheckID: "serfHealth", Status: api.HealthPassing}},
	}
	for _, c := range change {
		c(e)
	}
	return e
}

// check adds a check to an entry.
func check(id, status string) func(*api.ServiceEntry) {
	return func(e *api.ServiceEntry) {
		e.Checks = append(e.Checks, &api.HealthCheck{CheckID: cmp.Or(id, "c"), Status: status})
	}
}
