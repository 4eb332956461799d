package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/internal/consul/kvtest"
	"github.com/nosidecar/mesh/policy"
)

// consul starts an agent that the environment names.
func consul(t *testing.T) *kvtest.Server {
	agent := kvtest.New()
	server := httptest.NewServer(agent)
	t.Cleanup(server.Close)
	t.Setenv("CONSUL_HTTP_ADDR", server.URL)
	t.Setenv("CONSUL_HTTP_TOKEN", "of the environment")
	return agent
}

// folder makes a folder with files.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func weights(stable, canary int) string {
	return fmt.Sprintf(`apiVersion: split.smi-spec.io/v1alpha4
kind: TrafficSplit
metadata: {name: shop}
spec:
  service: shop
  backends:
  - {service: shop-stable, weight: %d}
  - {service: shop-canary, weight: %d}
`, stable, canary)
}

const service = "apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec: {ports: [{port: 80}]}\n"

func TestPushDiffPull(t *testing.T) {
	agent := consul(t)
	var tokens []string
	agent.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		tokens = append(tokens, r.Header.Get("X-Consul-Token"))
		return false
	})
	step := func(want string, wantCode int, args ...string) {
		t.Helper()
		if code, stdout, stderr := command(args...); code != wantCode || stdout != want || stderr != "" {
			t.Fatalf("mesh %q = %d, printed %q and as errors %q; want %d and %q", args, code, stdout, stderr, wantCode, want)
		}
	}
	first := folder(t, map[string]string{"service.yaml": service, "canary/split.yaml": weights(95, 5)})
	step("added canary/split.yaml\nadded service.yaml\n", exitDiffers, "diff", "-prefix", "mesh/shop", first)
	step("consul:mesh/shop: 2 files published\n", 0, "push", "-prefix", "mesh/shop", first)
	step("", 0, "diff", "-prefix", "mesh/shop", first)
	step("consul:mesh/shop: no change\n", 0, "push", "-prefix", "/mesh/shop/", first)

	second := folder(t, map[string]string{"split.yaml": strings.Replace(service, "shop", "cart", 1), "canary/split.yaml": weights(50, 50)})
	step("changed canary/split.yaml\n  line 7\n  -   - {service: shop-stable, weight: 95}\n  -   - {service: shop-canary, weight: 5}\n"+
		"  +   - {service: shop-stable, weight: 50}\n  +   - {service: shop-canary, weight: 50}\nadded split.yaml\nremoved service.yaml\n",
		exitDiffers, "diff", "-prefix", "mesh/shop", second+"/canary/..")
	code, stdout, _ := command("diff", "-prefix", "mesh/shop", "-o", "json", second)
	var got difference
	want := difference{"mesh/shop", []string{"split.yaml"}, []string{"canary/split.yaml"}, []string{"service.yaml"}}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != exitDiffers || !reflect.DeepEqual(got, want) {
		t.Errorf("as JSON: %d, %+v, %v; want %d and %+v", code, got, err, exitDiffers, want)
	}
	step("{\n  \"prefix\": \"mesh/shop\",\n  \"added\": [],\n  \"changed\": [],\n  \"removed\": []\n}\n", 0, "diff", "-prefix", "mesh/shop", "-o", "json", first)

	dir := filepath.Join(t.TempDir(), "new", "folder")
	step("consul:mesh/shop: 2 files written to "+dir+"\n", 0, "pull", "-prefix", "mesh/shop", dir)
	step("consul:mesh/shop: no change\n", 0, "push", "-prefix", "mesh/shop", dir)
	if code, stdout, stderr := command("pull", "-prefix", "mesh/shop", dir); code != exitFailed || stdout != "" || !strings.Contains(stderr, "is not empty") {
		t.Errorf("pull to a folder that is not empty = %d, printed %q and as errors %q", code, stdout, stderr)
	}
	for _, token := range tokens {
		if token != "of the environment" {
			t.Errorf("a request with the token %q", token)
		}
	}
}

// Config entries of Consul are published with the other documents, HCL as JSON.
func TestPushHCL(t *testing.T) {
	agent := consul(t)
	dir := folder(t, map[string]string{"shop.hcl": `
Kind = "service-resolver"
Name = "shop"
Subsets = {
  v1 = { Filter = "Service.Meta.version == v1" }
}
`, "defaults.json": `{"Kind": "service-defaults", "Name": "shop", "Protocol": "http"}`, "service.yaml": service})
	if code, stdout, stderr := command("push", "-prefix", "mesh/shop", dir); code != 0 || stdout != "consul:mesh/shop: 3 files published\n" {
		t.Fatalf("push = %d, printed %q and as errors %q", code, stdout, stderr)
	}
	for _, pair := range agent.Below("mesh/shop/v/") {
		if isJSON := strings.HasSuffix(pair.Key, "/shop.hcl.json") || strings.HasSuffix(pair.Key, "/defaults.json"); isJSON != json.Valid(pair.Value) {
			t.Errorf("%s is %s", pair.Key, pair.Value)
		}
	}
	pulled := filepath.Join(t.TempDir(), "pulled")
	for _, args := range [][]string{{"pull", "-prefix", "mesh/shop", pulled}, {"check", pulled}, {"diff", "-prefix", "mesh/shop", pulled}, {"diff", "-prefix", "mesh/shop", dir}} {
		if code, stdout, stderr := command(args...); code != 0 {
			t.Errorf("mesh %q = %d, printed %q and as errors %q", args, code, stdout, stderr)
		}
	}
}

// What check refuses is not published, and neither is what cannot be.
func TestPushRefuses(t *testing.T) {
	agent := consul(t)
	good := folder(t, map[string]string{"a.yaml": service})
	for name, test := range map[string]struct {
		paths []string
		code  int
		want  string
	}{
		"an error":            {[]string{folder(t, map[string]string{"a.yaml": service, "b.yaml": weights(-1, 5)})}, exitErrors, "b.yaml:7: TrafficSplit default/shop: spec.backends[0].weight: error: "},
		"no document":         {[]string{good, folder(t, nil)}, exitErrors, nothing},
		"all skipped":         {[]string{good, folder(t, map[string]string{"b.yaml": "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}"})}, exitErrors, ":1: error: no document in it has a meaning"},
		"no file":             {[]string{filepath.Join(good, "b.yaml")}, exitFailed, "b.yaml"},
		"no path":             {nil, exitFailed, "name the files"},
		"a name twice":        {[]string{good, folder(t, map[string]string{"a.yaml": weights(1, 1)})}, exitFailed, "one name, a.yaml"},
		"a file too large":    {[]string{folder(t, map[string]string{"a.yaml": service + strings.Repeat("#", 380<<10)})}, exitFailed, `"a.yaml"`},
		"a name Consul lacks": {[]string{folder(t, map[string]string{"a\n.yaml": service})}, exitFailed, "cannot be printed"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, sub := range []string{"push", "diff"} {
				code, stdout, stderr := command(append([]string{sub, "-prefix", "mesh/shop"}, test.paths...)...)
				if sub == "diff" && (name == "a file too large" || name == "a name Consul lacks") {
					continue // these are Push's
				}
				if code != test.code || stdout != "" || !strings.Contains(stderr, test.want) {
					t.Errorf("%s = %d, printed %q and as errors %q; want %d and %q", sub, code, stdout, stderr, test.code, test.want)
				}
			}
		})
	}
	for _, args := range [][]string{{"push", good}, {"push", "-prefix", "/", good}, {"pull", "-prefix", "mesh/shop"}, {"pull", t.TempDir()}, {"diff", "-o", "xml", "-prefix", "a", good}} {
		if code, _, stderr := command(args...); code != exitFailed || !strings.Contains(stderr, seeHelp) {
			t.Errorf("mesh %q = %d, errors %q; want that its usage is wrong", args, code, stderr)
		}
	}
	if n := len(agent.Transactions()); n != 0 {
		t.Errorf("%d transactions, want none", n)
	}
}

// A warning does not keep documents from being published; it is said on standard error.
func TestPushWarns(t *testing.T) {
	consul(t)
	code, stdout, stderr := command("push", "-prefix", "mesh/shop", filepath.Join(seed, "10-complete-setup.yaml"))
	if code != 0 || !strings.Contains(stdout, "1 file published") || !strings.Contains(stderr, ": warning: ") {
		t.Errorf("push = %d, printed %q and as errors %q", code, stdout, stderr)
	}
}

func TestPushSaysWhatConsulSays(t *testing.T) {
	agent := consul(t)
	dir := folder(t, map[string]string{"a.yaml": service})
	if code, _, stderr := command("pull", "-prefix", "mesh/shop", t.TempDir()); code != exitFailed || !strings.Contains(stderr, "mesh push -prefix mesh/shop") {
		t.Errorf("pull of nothing = %d, errors %q", code, stderr)
	}
	once := false
	agent.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v1/txn" && !once {
			once = true
			if code, _, stderr := command("push", "-prefix", "mesh/shop", filepath.Join(seed, "09-retries.yaml")); code != 0 {
				t.Errorf("the other push = %d, errors %q", code, stderr)
			}
		}
		return false
	})
	if code, stdout, stderr := command("push", "-prefix", "mesh/shop", dir); code != exitFailed || stdout != "" || !strings.Contains(stderr, "another push came first") {
		t.Errorf("push = %d, printed %q and as errors %q; want that another one came first", code, stdout, stderr)
	}
	agent.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		http.Error(w, "Permission denied", http.StatusForbidden)
		return true
	})
	for _, args := range [][]string{{"push", "-prefix", "mesh/shop", dir}, {"diff", "-prefix", "mesh/shop", dir}, {"pull", "-prefix", "mesh/shop", t.TempDir()}} {
		if code, stdout, stderr := command(args...); code != exitFailed || stdout != "" || !strings.Contains(stderr, "enied") {
			t.Errorf("mesh %s = %d, printed %q and as errors %q; want that it is denied", args[0], code, stdout, stderr)
		}
	}
	t.Setenv("CONSUL_CACERT", filepath.Join(dir, "none.pem"))
	t.Setenv("CONSUL_HTTP_SSL", "true")
	if code, _, stderr := command("push", "-prefix", "mesh/shop", dir); code != exitFailed || !strings.Contains(stderr, "none.pem") {
		t.Errorf("push without the CA of the environment = %d, errors %q", code, stderr)
	}
}

// Whoever may write to Consul may choose the names of keys, but not of files outside the folder.
func TestPullStaysInItsFolder(t *testing.T) {
	for _, name := range []string{
		"../outside.yaml", "a/../../outside.yaml", "/outside.yaml", "..", ".", "", "a//b.yaml", `..\outside.yaml`, `C:\outside.yaml`,
		".hidden.yaml", "script.sh", "a\x00.yaml", "a\x1b[2J.yaml", "a.yaml/", "a.yaml/b.yaml",
	} {
		agent := consul(t)
		good := folder(t, map[string]string{"a.yaml": service})
		if code, _, stderr := command("push", "-prefix", "mesh/shop", good); code != 0 {
			t.Fatalf("push = %d, %q", code, stderr)
		}
		agent.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			if !r.URL.Query().Has("recurse") {
				return false
			}
			key, value := strings.TrimPrefix(r.URL.Path, "/v1/kv/"), base64.StdEncoding.EncodeToString([]byte(service))
			w.Header().Set("X-Consul-Index", "9")
			json.NewEncoder(w).Encode([]map[string]any{{"Key": key + "a.yaml", "Value": value}, {"Key": key + name, "Value": value}})
			return true
		})
		above := t.TempDir()
		dir := filepath.Join(above, "in", "documents")
		code, stdout, stderr := command("pull", "-prefix", "mesh/shop", dir)
		if code != exitFailed || stdout != "" || strings.ContainsAny(strings.TrimSuffix(stderr, "\n"), "\x00\x1b\n") {
			t.Errorf("%q: pull = %d, printed %q and as errors %q", name, code, stdout, stderr)
		}
		filepath.WalkDir(above, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.IsDir() && !strings.HasPrefix(path, dir+string(filepath.Separator)) {
				t.Errorf("%q: %s is there, %v", name, path, err)
			}
			return nil
		})
	}
}

// Names that the store lets through by mistake lead nowhere else, either.
func TestWritingStaysInItsFolder(t *testing.T) {
	above := t.TempDir()
	for i, name := range []string{"../outside.yaml", "a/../../../outside.yaml", filepath.Join(above, "outside.yaml"), "link/outside.yaml"} {
		dir := filepath.Join(above, fmt.Sprint(i))
		files := []policy.Source{{Name: "a.yaml", Data: []byte("a")}, {Name: name, Data: []byte("b")}}
		if name == "link/outside.yaml" {
			if err := errors.Join(os.Mkdir(dir, 0o777), os.Symlink("..", filepath.Join(dir, "link"))); err != nil {
				t.Fatal(err)
			}
		}
		if err := writeAll(dir, files); err == nil {
			t.Errorf("%q was written", name)
		}
	}
	if found, err := filepath.Glob(filepath.Join(above, "*.yaml")); err != nil || len(found) > 0 {
		t.Errorf("%q are there, %v", found, err)
	}
}

// A line of a document that was published does nothing to the terminal.
func TestDiffIsHarmless(t *testing.T) {
	consul(t)
	before := folder(t, map[string]string{"a.yaml": service + "# \x1b]0;title\x07\n"})
	if code, _, stderr := command("push", "-prefix", "mesh/shop", before); code != exitOK {
		if !strings.Contains(stderr, "control") {
			t.Fatalf("push = %d, %q", code, stderr)
		}
		t.Skip("YAML does not take it")
	}
	_, stdout, _ := command("diff", "-prefix", "mesh/shop", folder(t, map[string]string{"a.yaml": service}))
	if strings.ContainsAny(stdout, "\x1b\x07") || !strings.Contains(stdout, `\x1b`) {
		t.Errorf("diff printed %q", stdout)
	}
}
