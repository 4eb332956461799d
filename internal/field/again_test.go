package field_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/field"
)

func FuzzRetryAfter(f *testing.F) {
	for _, seed := range []string{
		"", "0", "120", "-1", "9223372036", "9223372037", "99999999999999999999", "Sun, 06 Nov 1994 08:49:37 GMT",
		"Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994", "Fri, 31 Dec 9999 23:59:59 GMT", "1e3", " 5",
	} {
		f.Add(seed)
	}
	now := time.Unix(784111770, 0)
	f.Fuzz(func(t *testing.T, value string) {
		d := field.RetryAfter([]string{value}, now)
		if d < 0 {
			t.Fatalf("RetryAfter(%q) = %v", value, d)
		}
		if n, err := strconv.ParseUint(value, 10, 32); err == nil && value[0] != '+' && d != time.Duration(n)*time.Second {
			t.Fatalf("RetryAfter(%q) = %v, want %d s", value, d, n)
		}
	})
}

func TestPushback(t *testing.T) {
	for _, test := range []struct {
		values []string
		after  time.Duration
		told   bool
	}{
		{nil, 0, false}, {[]string{"20"}, 20 * time.Millisecond, true}, {[]string{"0"}, 0, true},
		{[]string{"-1"}, -time.Millisecond, true}, {[]string{"soon"}, -1, true}, {[]string{"1", "2"}, -1, true},
		{[]string{"99999999999"}, -1, true},
	} {
		if after, told := field.Pushback(test.values); after != test.after || told != test.told {
			t.Errorf("Pushback(%q) = %v, %t; want %v, %t", test.values, after, told, test.after, test.told)
		}
	}
}
