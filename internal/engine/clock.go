package engine

import (
	"sync/atomic"
	"time"
)

// dateKept is how long a clock derives the date from one that it has read: if the date is set, calls show that as much later.
const dateKept = 100 * time.Millisecond

// clock tells the time for half the price of time.Now, which reads two clocks, one of them only for the date.
type clock struct {
	read  atomic.Pointer[time.Time] // the last time that included the date
	young atomic.Pointer[time.Time] // one that is less than dateKept ago, which a timer ends; nil if there is none
}

func (c *clock) now() moment {
	if read := c.read.Load(); read != nil {
		if since := time.Since(*read); since >= 0 && since < dateKept {
			return moment{read, since}
		}
	}
	now := time.Now()
	c.read.Store(&now)
	return moment{read: &now}
}

// rough tells a time that is less than dateKept ago. It reads no clock but the first time in dateKept.
func (c *clock) rough() moment {
	if read := c.young.Load(); read != nil {
		return moment{read: read}
	}
	return c.renew()
}

// renew reads the clock, and sets a timer for when that is too long ago. So there is none while there are no calls.
func (c *clock) renew() moment {
	m := c.now()
	if c.young.CompareAndSwap(nil, m.read) {
		time.AfterFunc(dateKept-m.since-1, func() { c.young.Store(nil) })
	}
	return moment{read: m.read}
}

// moment is a time that a clock has told.
type moment struct {
	read  *time.Time
	since time.Duration
}

func (m moment) time() time.Time { return m.read.Add(m.since) }

// roughly returns a time that is up to dateKept earlier, and costs nothing.
func (m moment) roughly() time.Time { return *m.read }

// until returns the time from m to at.
func (m moment) until(at time.Time) time.Duration { return at.Sub(*m.read) - m.since }

// elapsed reads the clock.
func (m moment) elapsed() time.Duration { return time.Since(*m.read) - m.since }
