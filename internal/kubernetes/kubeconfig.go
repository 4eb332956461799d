package kubernetes

import (
	"cmp"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

const maxFile = 4 << 20 // bytes

// kubeconfig is a kubeconfig file. Fields that are not here are for other tools.
type kubeconfig struct {
	Kind           string `yaml:"kind"`
	CurrentContext string `yaml:"current-context"`
	Clusters       []struct {
		Name    string       `yaml:"name"`
		Cluster *kubeCluster `yaml:"cluster"`
	} `yaml:"clusters"`
	Users []struct {
		Name string    `yaml:"name"`
		User *kubeUser `yaml:"user"`
	} `yaml:"users"`
	Contexts []struct {
		Name    string       `yaml:"name"`
		Context *kubeContext `yaml:"context"`
	} `yaml:"contexts"`
}

type kubeCluster struct {
	Server        string `yaml:"server"`
	CA            string `yaml:"certificate-authority"`
	CAData        string `yaml:"certificate-authority-data"`
	TLSServerName string `yaml:"tls-server-name"`
	Insecure      bool   `yaml:"insecure-skip-tls-verify"`
	ProxyURL      string `yaml:"proxy-url"`

	dir string // the folder of the file, for relative paths
}

type kubeUser struct {
	Token           string `yaml:"token"`
	TokenFile       string `yaml:"tokenFile"`
	Certificate     string `yaml:"client-certificate"`
	CertificateData string `yaml:"client-certificate-data"`
	Key             string `yaml:"client-key"`
	KeyData         string `yaml:"client-key-data"`

	// Fields that are refused by name.
	Exec         any    `yaml:"exec"`
	AuthProvider any    `yaml:"auth-provider"`
	Username     string `yaml:"username"`
	Password     string `yaml:"password"`
	As           string `yaml:"as"`
	AsUID        string `yaml:"as-uid"`
	AsGroups     any    `yaml:"as-groups"`
	AsUserExtra  any    `yaml:"as-user-extra"`

	dir string
}

type kubeContext struct {
	Cluster   string `yaml:"cluster"`
	User      string `yaml:"user"`
	Namespace string `yaml:"namespace"`
}

// Kubeconfig returns the client that a kubeconfig file describes. An empty path means the files named in KUBECONFIG, where the first file
// that sets something takes precedence, or else ~/.kube/config. An empty context means the current one. Settings that this client does not
// support, such as a command that prints a token, are refused.
func Kubeconfig(path, context string) (*Client, error) {
	paths := []string{path}
	optional := false
	if path == "" {
		if paths = filepath.SplitList(os.Getenv("KUBECONFIG")); len(paths) > 0 {
			optional = true // as in kubectl, as long as one of the files exists
		} else {
			home, err := os.UserHomeDir()
			if err != nil {
				return nil, fmt.Errorf("kubernetes: kubeconfig: %w", err)
			}
			paths = []string{filepath.Join(home, ".kube", "config")}
		}
	}
	var merged merged
	for _, path := range paths {
		if path == "" {
			continue
		}
		data, err := readBounded(path)
		switch {
		case optional && errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, fmt.Errorf("kubernetes: kubeconfig: %w", err)
		}
		if err := merged.add(data, filepath.Dir(path)); err != nil {
			return nil, fmt.Errorf("kubernetes: kubeconfig %s: %w", path, err)
		}
	}
	config, err := merged.config(context)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: kubeconfig: %w", err)
	}
	return New(config)
}

// readRegular reads a file. It refuses pipes and devices, since reading them may never end.
func readRegular(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return readBounded(path)
}

// readBounded reads a file, which may be a pipe.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s: more than %d MiB", path, maxFile>>20)
	}
	return data, err
}

// merged combines several files: the first that sets something takes precedence.
type merged struct {
	current  string
	clusters map[string]*kubeCluster
	users    map[string]*kubeUser
	contexts map[string]*kubeContext
}

func (m *merged) add(data []byte, dir string) error {
	var file kubeconfig
	if err := yaml.Unmarshal(data, &file); err != nil {
		return err
	}
	if file.Kind != "" && file.Kind != "Config" {
		return fmt.Errorf("kind is %q, not Config", file.Kind)
	}
	if m.clusters == nil {
		m.clusters, m.users, m.contexts = map[string]*kubeCluster{}, map[string]*kubeUser{}, map[string]*kubeContext{}
	}
	m.current = cmp.Or(m.current, file.CurrentContext)
	for _, c := range file.Clusters {
		if c.Cluster != nil && m.clusters[c.Name] == nil {
			c.Cluster.dir = dir
			m.clusters[c.Name] = c.Cluster
		}
	}
	for _, u := range file.Users {
		if u.User != nil && m.users[u.Name] == nil {
			u.User.dir = dir
			m.users[u.Name] = u.User
		}
	}
	for _, c := range file.Contexts {
		if c.Context != nil && m.contexts[c.Name] == nil {
			m.contexts[c.Name] = c.Context
		}
	}
	return nil
}

// config returns the configuration of a context.
func (m *merged) config(context string) (Config, error) {
	name := cmp.Or(context, m.current)
	if name == "" {
		return Config{}, errors.New("no current-context: set one, or name a context")
	}
	c := m.contexts[name]
	if c == nil {
		return Config{}, fmt.Errorf("there is no context %q", name)
	}
	cluster := m.clusters[c.Cluster]
	if cluster == nil {
		return Config{}, fmt.Errorf("context %q: there is no cluster %q", name, c.Cluster)
	}
	config, err := cluster.config()
	if err != nil {
		return Config{}, fmt.Errorf("cluster %q: %w", c.Cluster, err)
	}
	config.Namespace = cmp.Or(c.Namespace, "default") // as in kubectl
	user := m.users[c.User]
	if user == nil && c.User != "" {
		return Config{}, fmt.Errorf("context %q: there is no user %q", name, c.User)
	}
	if user != nil {
		if err := user.apply(&config); err != nil {
			return Config{}, fmt.Errorf("user %q: %w", c.User, err)
		}
	}
	return config, nil
}

func (c *kubeCluster) config() (Config, error) {
	if c.Server == "" {
		return Config{}, errors.New("server is not set")
	}
	config := Config{Server: c.Server, ServerName: c.TLSServerName, Insecure: c.Insecure}
	var err error
	if config.CA, err = dataOrFile("certificate-authority", c.CAData, c.CA, c.dir); err != nil {
		return Config{}, err
	}
	if c.CAData == "" && c.CA != "" {
		config.CAFile = absolute(c.CA, c.dir)
	}
	if c.ProxyURL != "" {
		if config.Proxy, err = url.Parse(c.ProxyURL); err != nil {
			return Config{}, fmt.Errorf("proxy-url: %w", err)
		}
		switch config.Proxy.Scheme {
		case "http", "https", "socks5", "socks5h":
		default:
			return Config{}, fmt.Errorf("proxy-url: the scheme is %q, not http, https or socks5", config.Proxy.Scheme)
		}
	}
	return config, nil
}

// apply adds the credentials of a user.
func (u *kubeUser) apply(config *Config) error {
	for _, refused := range []struct {
		name, why string
		set       bool
	}{
		{"exec", "commands are not run: set a token or tokenFile", u.Exec != nil},
		{"auth-provider", "providers are not called: set a token or tokenFile", u.AuthProvider != nil},
		{"username", "passwords are not sent: set a token or a client certificate", u.Username != ""},
		{"password", "passwords are not sent: set a token or a client certificate", u.Password != ""},
		{"as", "nobody is impersonated: use a token of that user", u.As != ""},
		{"as-uid", "nobody is impersonated: use a token of that user", u.AsUID != ""},
		{"as-groups", "nobody is impersonated: use a token of that user", u.AsGroups != nil},
		{"as-user-extra", "nobody is impersonated: use a token of that user", u.AsUserExtra != nil},
	} {
		if refused.set {
			return fmt.Errorf("%s: %s", refused.name, refused.why)
		}
	}
	config.Token = u.Token
	if u.TokenFile != "" {
		config.TokenFile = absolute(u.TokenFile, u.dir)
	}
	certificate, err := dataOrFile("client-certificate", u.CertificateData, u.Certificate, u.dir)
	if err != nil {
		return err
	}
	key, err := dataOrFile("client-key", u.KeyData, u.Key, u.dir)
	if err != nil {
		return err
	}
	switch {
	case certificate == nil && key == nil:
		return nil
	case certificate == nil:
		return errors.New("client-key is set, client-certificate is not")
	case key == nil:
		return errors.New("client-certificate is set, client-key is not")
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return fmt.Errorf("client-certificate: %w", err)
	}
	config.Certificate = &pair
	return nil
}

// dataOrFile returns the data of a field if there is any, or the content of its file.
func dataOrFile(name, data, path, dir string) ([]byte, error) {
	if data != "" {
		text, err := base64.StdEncoding.DecodeString(data)
		if err != nil {
			return nil, fmt.Errorf("%s-data: %w", name, err)
		}
		return text, nil
	}
	if path == "" {
		return nil, nil
	}
	text, err := readRegular(absolute(path, dir))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case len(text) == 0:
		return nil, fmt.Errorf("%s: %s is empty", name, path)
	}
	return text, nil
}

// absolute returns the absolute form of a path in a kubeconfig, which is relative to the folder of that file.
func absolute(path, dir string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}
