package kubernetes

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	readEvery = time.Second // that a token file is read, at most
	maxToken  = 1 << 20
)

// token is what requests are authorized with. Its zero value is none.
type token struct {
	path string // empty: it never changes

	mu   sync.Mutex
	last string
	at   time.Time // when it was read
}

// newToken returns the token of a configuration. A file must be there, since what is authorized with nothing is anonymous.
func newToken(config Config) (*token, error) {
	t := &token{path: config.TokenFile}
	text := strings.TrimSpace(config.Token)
	if t.path != "" {
		data, err := os.ReadFile(t.path)
		if err != nil {
			return nil, fmt.Errorf("kubernetes: token: %w", err)
		}
		if text = strings.TrimSpace(string(data)); text == "" {
			return nil, fmt.Errorf("kubernetes: token: %s is empty", t.path)
		}
		t.at = time.Now()
	}
	t.last = text
	return t, checkToken(text)
}

func checkToken(text string) error {
	if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) || len(text) > maxToken {
		return errors.New("kubernetes: the token is not one line of text")
	}
	return nil
}

func (t *token) set() bool { return t.path != "" || t.last != "" }

// read returns the token of now. It reads the file again, once a second at most. A file that cannot be read, or is empty since it is
// being written, leaves the last.
func (t *token) read() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); t.path != "" && now.Sub(t.at) >= readEvery {
		t.at = now
		if data, err := os.ReadFile(t.path); err == nil {
			if text := strings.TrimSpace(string(data)); text != "" && checkToken(text) == nil {
				t.last = text
			}
		}
	}
	return t.last
}

// Identity is who the server takes this process for, as far as it is known.
type Identity struct {
	Namespace, ServiceAccount string
	Pod, Node                 string // empty for a token that is not of a pod
}

// Identity returns what the token of this process says. The server has verified nothing of it yet: it is only good for what this
// process says of itself. It is zero without a token of a service account.
func (c *Client) Identity() Identity {
	text := c.token.read()
	return claims(text)
}

// claims reads the claims of a service account token.
func claims(text string) Identity {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return Identity{}
	}
	data, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return Identity{}
	}
	var body struct {
		Sub        string `json:"sub"`
		Kubernetes struct {
			Namespace      string                `json:"namespace"`
			ServiceAccount struct{ Name string } `json:"serviceaccount"`
			Pod            struct{ Name string } `json:"pod"`
			Node           struct{ Name string } `json:"node"`
		} `json:"kubernetes.io"`
	}
	if json.Unmarshal(data, &body) != nil {
		return Identity{}
	}
	k := body.Kubernetes
	id := Identity{Namespace: k.Namespace, ServiceAccount: k.ServiceAccount.Name, Pod: k.Pod.Name, Node: k.Node.Name}
	// system:serviceaccount:NAMESPACE:NAME
	if sub := strings.Split(body.Sub, ":"); len(sub) == 4 && sub[0] == "system" && sub[1] == "serviceaccount" {
		if id.Namespace == "" && id.ServiceAccount == "" {
			id.Namespace, id.ServiceAccount = sub[2], sub[3]
		}
		if id.Namespace == sub[2] && id.ServiceAccount == sub[3] {
			return id
		}
	}
	return Identity{} // it contradicts itself, or is of something else
}
