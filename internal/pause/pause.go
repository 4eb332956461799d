// Package pause waits for a while, or less if a context ends.
package pause

import (
	"context"
	"time"
)

// For waits for d, and returns the cause if ctx ends first. If d is 0 or less, it only looks whether ctx has ended.
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
