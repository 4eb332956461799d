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

// A rough time is less than dateKept ago. In between, the clock is not read.
func TestClock_Rough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c clock
		var last *time.Time
		for _, test := range []struct {
			pause time.Duration
			read  bool
		}{{0, true}, {0, false}, {dateKept / 2, false}, {dateKept/2 - 2, false}, {2, true}, {1, false}, {dateKept, true}, {time.Hour, true}} {
			time.Sleep(test.pause)
			synctest.Wait()
			m := c.rough()
			if read := m.read != last; read != test.read {
				t.Errorf("after %v more, the clock was read: %v", test.pause, read)
			}
			if age := m.elapsed(); age < 0 || age >= dateKept {
				t.Errorf("after %v more, the rough time is %v ago, want less than %v", test.pause, age, dateKept)
			}
			last = m.read
		}
	})
}
