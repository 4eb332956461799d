package field

import "testing"

func TestRedactQuery(t *testing.T) {
	for query, want := range map[string]string{
		"": "", "a=b": "a=b", "secret": "secret", "secret=x": "secret=REDACTED", "secret=": "secret=REDACTED", "a=%zz&secret=x&b=1": "a=%zz&secret=REDACTED&b=1",
		"%73ecret=x&secret=y": "%73ecret=REDACTED&secret=REDACTED", "Secret=x": "Secret=x", "secrets=x&&": "secrets=x&&", "&secret=x&": "&secret=REDACTED&", "secret=a=b": "secret=REDACTED",
		"%zz=x&secret=x": "%zz=x&secret=REDACTED",
	} {
		if got := RedactQuery(query, []string{"secret"}); got != want {
			t.Errorf("%q: got %q, want %q", query, got, want)
		}
	}
}
