package consulkv

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/internal/folder"
)

const (
	// Of a set, as of a folder of documents.
	mostFiles = folder.DefaultMaxFiles
	mostBytes = folder.DefaultMaxBytes

	mostFile = 380 << 10 // bytes of a file: one must fit into a transaction, in base64
	mostKey  = 1000      // bytes of a key
)

// pointer is the value of the key current.
type pointer struct {
	Version  string   `json:"version"`
	Keys     int      `json:"keys"`
	SHA256   string   `json:"sha256"`             // of the names and values, see sum
	Previous []string `json:"previous,omitempty"` // versions that are kept, the latest first
}

func (p pointer) same(other pointer) bool {
	return p.Version == other.Version && p.Keys == other.Keys && p.SHA256 == other.SHA256
}

// A version is named by the beginning of its hash and by the index of the key current before it. So no two pushes that
// both succeed have the same one, and what one of them removes afterwards is never what the next one writes.
var isVersion = regexp.MustCompile(`^[0-9a-f]{16}-[0-9]{1,20}$`).MatchString

func versionID(sum string, index uint64) string { return fmt.Sprintf("%s-%d", sum[:16], index) }

func parse(value []byte) (pointer, error) {
	var p pointer
	if err := json.Unmarshal(value, &p); err != nil {
		return p, fmt.Errorf("its value does not name a version: %w; remove the key, and publish with mesh push", err)
	}
	if !isVersion(p.Version) || p.Keys < 1 || p.Keys > mostFiles || len(p.SHA256) != 2*sha256.Size {
		return p, fmt.Errorf("its value does not name a version that mesh push writes (version %.40q, %d keys); remove the key, and publish with mesh push",
			p.Version, p.Keys)
	}
	return p, nil
}

// sum returns the hash of files that are in order.
func sum(files []policy.Source) string {
	h := sha256.New()
	for _, f := range files {
		fmt.Fprintf(h, "%d %d %s", len(f.Name), len(f.Data), f.Name)
		h.Write(f.Data)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// files returns what the keys of a version hold, if that is what the pointer says.
func (r *reader) files(p pointer, pairs api.KVPairs) ([]policy.Source, error) {
	var files []policy.Source
	for _, pair := range pairs {
		if pair == nil {
			return nil, fmt.Errorf("a key below %q is null", r.folder(p.Version))
		}
		name, below := strings.CutPrefix(pair.Key, r.folder(p.Version))
		if !below {
			return nil, fmt.Errorf("key %q is not below %q", pair.Key, r.folder(p.Version))
		}
		if err := checkName(name); err != nil {
			return nil, fmt.Errorf("key %q: %w", pair.Key, err)
		}
		files = append(files, policy.Source{Name: name, Data: pair.Value})
	}
	sort(files)
	switch {
	case len(files) != p.Keys:
		return nil, fmt.Errorf("%d keys below %q, want %d; publish again with mesh push", len(files), r.folder(p.Version), p.Keys)
	case sum(files) != p.SHA256:
		return nil, fmt.Errorf("the keys below %q are not those that were published: their hash differs; publish again with mesh push", r.folder(p.Version))
	}
	return files, nil
}

// sort puts files in the order in which a folder is read: where two documents claim a host, the first one wins.
func sort(files []policy.Source) {
	slices.SortFunc(files, func(a, b policy.Source) int { return compareNames(a.Name, b.Name) })
}

func compareNames(a, b string) int {
	return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
}

// arrange returns files in order, if they can be published.
func (r *reader) arrange(sources []policy.Source) ([]policy.Source, error) {
	files := slices.Clone(sources)
	sort(files)
	total := 0
	for i, f := range files {
		total += len(f.Data)
		err := checkName(f.Name)
		switch {
		case err != nil:
		case f.Err != nil:
			err = f.Err
		case len(f.Data) > mostFile:
			err = fmt.Errorf("%d bytes, and Consul takes %d in one key; split it", len(f.Data), mostFile)
		case len(r.key(versionID(strings.Repeat("0", 16), 0), f.Name))+20 > mostKey:
			err = fmt.Errorf("the name is too long: a key has at most %d bytes", mostKey)
		case i > 0 && files[i-1].Name == f.Name:
			err = fmt.Errorf("there are two files of this name; rename one")
		}
		if err != nil {
			return nil, fmt.Errorf("consulkv: %s: file %q: %w", r.prefix, f.Name, err)
		}
	}
	switch {
	case len(files) == 0:
		return nil, fmt.Errorf("consulkv: %s: no files to publish", r.prefix)
	case len(files) > mostFiles:
		return nil, fmt.Errorf("consulkv: %s: %d files, and a set has at most %d", r.prefix, len(files), mostFiles)
	case total > mostBytes:
		return nil, fmt.Errorf("consulkv: %s: %d bytes, and a set has at most %d", r.prefix, total, mostBytes)
	}
	return files, nil
}

// extensions are how the names of documents end. HCL is for people to write: mesh push publishes it as JSON.
var extensions = []string{".yaml", ".yml", ".json"}

// checkName says what is wrong with the name of a file. Whoever may write keys may choose it, and mesh pull makes files of it.
func checkName(name string) error {
	switch {
	case !fs.ValidPath(name) || name == "." || strings.Contains(name, `\`) || !filepath.IsLocal(filepath.FromSlash(name)):
		return fmt.Errorf("it is not the path of a file in a folder")
	case !printable(name):
		return fmt.Errorf("its name has characters that cannot be printed")
	case slices.ContainsFunc(strings.Split(name, "/"), folder.Hidden):
		return fmt.Errorf("hidden files hold no documents")
	case !slices.Contains(extensions, path.Ext(name)):
		return fmt.Errorf("its name is not one of a document, such as %s.yaml", cmp.Or(strings.TrimSuffix(name, path.Ext(name)), "name"))
	}
	return nil
}

func trim(prefix string) string { return strings.Trim(prefix, "/") }

func checkPrefix(prefix string) error {
	switch {
	case prefix == "":
		return fmt.Errorf("consulkv: no Prefix: name the place of the documents, such as mesh/shop")
	case !fs.ValidPath(prefix) || prefix == "." || !printable(prefix) || len(prefix) > mostKey/2:
		return fmt.Errorf("consulkv: Prefix %.100q: want names with single slashes between them, such as mesh/shop", prefix)
	}
	return nil
}

func printable(name string) bool {
	return utf8.ValidString(name) && strings.IndexFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}
