package kubernetes

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

const maxToken = 1 << 20

// newToken returns the token of a configuration, which is empty if there is none. If a file is named it must exist, since requests without a
// token are anonymous.
func newToken(config Config) (*renewed, error) {
	if config.TokenFile != "" {
		return openRenewed("token", config.TokenFile, checkToken)
	}
	text, err := checkToken(config.Token)
	if err != nil && config.Token != "" {
		return nil, fmt.Errorf("kubernetes: the token %w", err)
	}
	return &renewed{last: text}, nil
}

// checkToken returns a token without the space around it.
func checkToken(text string) (string, error) {
	text = strings.TrimSpace(text)
	switch {
	case text == "":
		return "", errors.New("is empty")
	case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) || len(text) > maxToken:
		return "", errors.New("is not one line of text")
	}
	return text, nil
}

// Identity is the identity of this process as the server sees it, as far as the process knows it.
type Identity struct {
	Namespace, ServiceAccount string
	Pod, Node                 string // empty for a token that does not belong to a pod
}

// Identity returns the identity in the token of this process. Nobody has verified it, so use it only for what this process says about
// itself. It is zero without the token of a service account.
func (c *Client) Identity() Identity { return claims(c.token.read()) }

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
	return Identity{} // the token contradicts itself, or is not that of a service account
}
