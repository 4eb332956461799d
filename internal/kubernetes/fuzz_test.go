package kubernetes_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/nosidecar/mesh/internal/kubernetes"
)

// FuzzEvents reads watches that may be anything. What is taken for an object is JSON, and of the kind that was asked for.
func FuzzEvents(f *testing.F) {
	f.Add([]byte(added("x", "u1", 5, "1") + "\n" + modified("x", "u1", 6, `"\ud83d`) + "\n" + bookmark(7) + "\n" + deleted("x", "u1", 8) + "\n"))
	f.Add([]byte(marker(10) + "\n" + failure(410, "Expired") + "\n"))
	f.Add([]byte(`{"object":{"metadata":{"name":"x","namespace":"a","uid":"u","resourceVersion":"1"}},"type":"ADDED"}` + "\n"))
	f.Add([]byte(`{"type":"ADDED","object":{"metadata":{"name":"\u0078","namespace":"a","uid":"u","resourceVersion":"01"},"n":[1,-0.5e+3,true,false,null,{},[]]}}` + "\r\n\n"))
	f.Add([]byte("{\"type\":\"ADDED\"}\n[\n"))
	f.Add([]byte(`{"type":"ADDED","object":` + strings.Repeat("[", 2000)))
	f.Add([]byte(`{"a":` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + `}`))
	f.Add([]byte(`{"a":["` + strings.Repeat("{", 1000) + `",` + strings.Repeat("[],", 1000) + `{}]}`)) // wide, and not deep
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, _, err := kubernetes.ReadEvents(bytes.NewReader(data), things, "a")
		if err == nil {
			t.Error("it did not end")
		}
		for key := range objects {
			if key.Namespace != "a" || key.Name == "" {
				t.Errorf("took %v", key)
			}
		}
		for line := range bytes.Lines(data) {
			deep := nesting(line)
			if deep > 1000 && deep <= 1004 {
				continue // depth is counted from the values that are not looked into
			}
			want := json.Valid(line) && bytes.HasPrefix(bytes.TrimSpace(line), []byte("{")) && deep <= 1000
			if object, ok := kubernetes.SkimEvent(line); ok != want {
				t.Errorf("SkimEvent(%q) = %v", line, ok)
			} else if ok && object != nil && !json.Valid(object) {
				t.Errorf("object %q of %q", object, line)
			}
		}
	})
}

// nesting returns how deep objects and arrays are nested in JSON.
func nesting(text []byte) (deepest int) {
	depth := 0
	for d := json.NewDecoder(bytes.NewReader(text)); ; {
		switch token, err := d.Token(); {
		case err != nil:
			return deepest
		case token == json.Delim('{') || token == json.Delim('['):
			depth++
			deepest = max(deepest, depth)
		case token == json.Delim('}') || token == json.Delim(']'):
			depth--
		}
	}
}

// FuzzList reads pages that may be anything.
func FuzzList(f *testing.F) {
	f.Add([]byte(`{"kind":"ThingList","apiVersion":"example.com/v1","metadata":{"resourceVersion":"10","continue":"p"},"items":[` + object("x", "u1", 5, "1") + `]}`))
	f.Add([]byte(`{"items":null,"metadata":{"resourceVersion":"10"},"apiVersion":"example.com/v1","kind":"ThingList"}`))
	f.Add([]byte(`{"kind":"Status","code":500}`))
	f.Add([]byte(`{"kind":"ThingList","Kind":1,"apiVersion":"example.com/v1","metadata":{"resourceVersion":"10"},"items":[],"kind":null,"Items":"none"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _, err := kubernetes.ReadList(bytes.NewReader(data), things, "a")
		if err != nil {
			return
		}
		if kind, err := kindOf(data); err != nil || kind != "ThingList" {
			t.Errorf("took %q", data)
		}
	})
}

// kindOf returns the kind of an object in JSON. Unlike encoding/json it does not take "Kind" for it.
func kindOf(data []byte) (kind string, err error) {
	var object json.RawMessage
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&object); err != nil {
		return "", err
	}
	d := json.NewDecoder(bytes.NewReader(object))
	for _, err = d.Token(); err == nil && d.More(); {
		var name, value any
		if name, err = d.Token(); err != nil {
			break
		}
		if err = d.Decode(&value); name == "kind" && value != nil {
			kind, _ = value.(string)
		}
	}
	return kind, err
}

// FuzzKubeconfig reads files that may be anything. What comes of them is a client, or an error.
func FuzzKubeconfig(f *testing.F) {
	f.Add([]byte(kubeconfigOf("x", "server: https://10.0.0.1, proxy-url: http://p", "token: t")))
	f.Add([]byte(kubeconfigOf("x", "server: https://10.0.0.1, certificate-authority-data: eA==", "exec: {command: c}")))
	f.Add([]byte(strings.Replace(kubeconfigOf("x", "server: https://10.0.0.1", "exec: {command: c}"), "user: {", "other: {", 1)))
	f.Add([]byte("clusters: [{}]\nusers: [{user: }]\ncontexts: [{name: x, context: {cluster: '', user: ''}}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.Contains(data, []byte("certificate-authority")) || bytes.Contains(data, []byte("client-")) || bytes.Contains(data, []byte("tokenFile")) {
			return // files of this machine
		}
		config, err := kubernetes.ReadKubeconfig(data, "/nonexistent", "x")
		if err != nil {
			return
		}
		if runsCommand(data, "x") {
			t.Errorf("took %q", data)
		}
		kubernetes.New(config)
	})
}

// runsCommand reports whether the user of a context is one whose token a command prints.
func runsCommand(kubeconfig []byte, context string) bool {
	var file struct {
		Users []struct {
			Name string
			User *map[string]any
		}
		Contexts []struct {
			Name    string
			Context *struct{ User string }
		}
	}
	if yaml.Unmarshal(kubeconfig, &file) != nil {
		return false
	}
	for _, c := range file.Contexts {
		if c.Name != context || c.Context == nil {
			continue
		}
		for _, u := range file.Users {
			if u.Name == c.Context.User && u.User != nil {
				return (*u.User)["exec"] != nil
			}
		}
		return false
	}
	return false
}
