// Package pause waits for a duration, or until a context ends.
package pause

import (
	"context"
	"time"
)

// For waits for d. If ctx ends first, it returns the cause. If d is 0 or less, it only checks whether ctx has ended.
func For(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Pace is for code of the program that should wait, but may not: it lets Burst events pass, and then one per Each. The zero time is its start.
// It is not safe for concurrent use.
type Pace struct {
	Burst int
	Each  time.Duration

	next time.Time // when an event would be due if there was never a burst
}

// Wait waits until the next event may pass. If ctx ends first, it returns the cause.
func (p *Pace) Wait(ctx context.Context) error {
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(p.Each)
	return For(ctx, p.next.Sub(now)-time.Duration(p.Burst)*p.Each)
}

// Errors returns a pace for errors, each of which is reported.
func Errors() Pace { return Pace{Burst: 10, Each: time.Second} }
