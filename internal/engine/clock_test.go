package engine

import (
	"testing"
	"testing/synctest"
	"time"
)

// A clock tells the same time as time.Now, whether it was read a moment ago or not, and the time since then.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c clock
		for _, pause := range []time.Duration{0, 1, dateKept / 3, dateKept - 1, dateKept, time.Hour, time.Millisecond} {
			time.Sleep(pause)
			m := c.now()
			if got, want := m.time(), time.Now(); !got.Equal(want) || got.Sub(want) != 0 {
				t.Errorf("after %v it is %v, want %v", pause, got, want)
			}
			if age := time.Since(m.roughly()); age < 0 || age >= dateKept {
				t.Errorf("after %v the rough time is %v ago, want less than %v", pause, age, dateKept)
			}
			time.Sleep(time.Second)
			if got := m.elapsed(); got != time.Second {
				t.Errorf("%v have passed, want 1s", got)
			}
		}
	})
}
