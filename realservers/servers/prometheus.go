package servers

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Prometheus is a Prometheus with its storage in a folder of the test.
type Prometheus struct {
	URL string
}

// StartPrometheus starts a Prometheus that scrapes the targets of each job every five seconds, which is also how long a target has
// to answer: on a busy machine a second was not enough, and series without an answer are gone. The file rules, if it is not "", has
// the recording and alert rules. The program comes from Debian's package prometheus.
func StartPrometheus(t testing.TB, jobs map[string][]string, rules string) *Prometheus {
	t.Helper()
	path, err := exec.LookPath("prometheus")
	if err != nil {
		t.Fatalf("%v: it is in the Debian package prometheus, which make servers installs", err)
	}
	var config strings.Builder
	fmt.Fprintln(&config, "global: {scrape_interval: 5s, scrape_timeout: 5s, evaluation_interval: 1s}")
	if rules != "" {
		fmt.Fprintf(&config, "rule_files: [%q]\n", rules)
	}
	fmt.Fprintln(&config, "scrape_configs:")
	for job, targets := range jobs {
		fmt.Fprintf(&config, "- {job_name: %q, static_configs: [{targets: [%s]}]}\n", job, quoted(targets))
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	p := new(Prometheus)
	start(t, func() (*exec.Cmd, string) {
		address := free(t, 1)[0]
		p.URL = "http://" + address
		return exec.Command(path, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address,
			"--log.level=warn"), p.URL + "/-/ready"
	})
	return p
}

// Sample is one series of an answer, with its value now.
type Sample struct {
	Labels map[string]string
	Value  string
}

// Query asks for the value of an expression now.
func (p *Prometheus) Query(expr string) ([]Sample, error) {
	data, err := get(context.Background(), p.URL+"/api/v1/query?query="+url.QueryEscape(expr))
	if err != nil {
		return nil, err
	}
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, fmt.Errorf("%s: %w", data, err)
	}
	var all []Sample
	for _, r := range answer.Data.Result {
		all = append(all, Sample{r.Metric, fmt.Sprint(r.Value[1])})
	}
	return all, nil
}

// Await asks until the answer is good, and returns it.
func (p *Prometheus) Await(t testing.TB, expr string, good func([]Sample) bool) []Sample {
	t.Helper()
	var all []Sample
	var err error
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if all, err = p.Query(expr); err == nil && good(all) {
			return all
		}
	}
	t.Errorf("%s is never answered as it should be: %v, %v", expr, all, err)
	targets, err := get(context.Background(), p.URL+"/api/v1/targets?state=active")
	t.Logf("the targets: %s, %v", targets, err)
	return all
}

func quoted(all []string) string {
	var b strings.Builder
	for i, s := range all {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", s)
	}
	return b.String()
}
