package meshgrpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/jwttest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy/jwt"
)

// A gRPC server verifies the tokens of its calls. A bad token gets UNAUTHENTICATED, and a token that is not accepted here gets
// PERMISSION_DENIED. The handler sees the user, but not the token.
func TestTokens(t *testing.T) {
	leak.Check(t)
	issuer := jwttest.New("a")
	m := meshtest.New(t, "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: users, namespace: default}\nspec:\n"+
		"  jwtRules: [{issuer: i, audiences: [shop], jwks: '"+jwttest.KeySet(issuer)+"', outputClaimToHeaders: [{header: x-sub, claim: sub}]}]\n---\n"+
		"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: users, namespace: default}\n"+
		"spec: {rules: [{from: [{source: {requestPrincipals: ['i/*']}}]}]}\n")
	say := func(ctx context.Context) string {
		md, _ := metadata.FromIncomingContext(ctx)
		user := "nobody"
		if claims := jwt.ClaimsOf(ctx); claims != nil {
			user = claims.Subject()
		}
		return user + " " + strings.Join(md["x-sub"], ",") + " " + strings.Join(md["authorization"], ",")
	}
	target := grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
			return nil, status.Error(codes.Aborted, say(ctx))
		},
		Bidi: func(s grpctest.BidiServer) error { return status.Error(codes.Aborted, say(s.Context())) },
	}, meshgrpc.ServerOptions(m)...)
	client := grpctest.NewClient(grpctest.Dial(t, target))
	for _, test := range []struct {
		name, token string
		code        codes.Code
		message     string
	}{
		{"good", issuer.Token(`{"iss":"i","sub":"alice","aud":"shop"}`), codes.Aborted, "alice alice "},
		{"none", "", codes.PermissionDenied, "RBAC: access denied"},
		{"expired", issuer.Token(`{"iss":"i","sub":"alice","aud":"shop","exp":1000000000}`), codes.Unauthenticated, "Jwt is expired"},
		{"forged", jwttest.New("a").Token(`{"iss":"i","sub":"alice","aud":"shop"}`), codes.Unauthenticated, "Jwt verification fails"},
		{"for others", issuer.Token(`{"iss":"i","sub":"alice","aud":"bank"}`), codes.PermissionDenied, "Audiences in Jwt are not allowed"},
	} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-sub", "root")
		if test.token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+test.token)
		}
		_, unary := client.UnaryCall(ctx, new(grpctest.Request))
		stream, err := client.FullDuplexCall(ctx)
		if err == nil {
			_, err = stream.Recv()
		}
		for kind, err := range map[string]error{"unary": unary, "stream": err} {
			if s := status.Convert(err); s.Code() != test.code || s.Message() != test.message {
				t.Errorf("%s, %s: got %v %q, want %v %q", test.name, kind, s.Code(), s.Message(), test.code, test.message)
			}
		}
	}
}

// A call whose token has a key that is not known waits for the keys of the issuer. It does not hold up other calls over its connection.
func TestCallThatWaitsForKeysHoldsUpNoOthers(t *testing.T) {
	var observed inbounds
	for name, opts := range map[string][]mesh.Option{"plain": nil, "observed": {observed.observer()}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first, second, third, fourth := jwttest.New("a"), jwttest.New("b"), jwttest.New("c"), jwttest.New("d")
				var network memnet.Network
				fetch := make(chan string) // each is an answer of the issuer
				keys := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					if set, ok := <-fetch; ok {
						io.WriteString(w, set)
					}
				})}
				var serving sync.WaitGroup
				listener := network.Listen("10.0.0.9:80")
				serving.Go(func() { _ = keys.Serve(listener) })
				defer serving.Wait()
				defer keys.Close()
				defer close(fetch)
				opts := append([]mesh.Option{
					mesh.WithDiscovery(discovery.Static{"keys": {{Address: "10.0.0.9", Port: 80}}}),
					mesh.WithTransport(&http.Transport{DialContext: network.DialContext}),
					mesh.WithServer(mesh.ServerConfig{TrustedHops: 1}),
				}, opts...)
				m := meshtest.New(t, "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: users, namespace: default}\n"+
					"spec: {jwtRules: [{issuer: i, jwksUri: 'http://keys/', timeout: 5s, outputClaimToHeaders: [{header: x-sub, claim: sub}]}]}\n", opts...)
				fetch <- jwttest.KeySet(first)
				time.Sleep(time.Minute)
				// It runs before the interceptors of the mesh, and sees nothing that is not decided about.
				before := grpc.UnaryInterceptor(func(ctx context.Context, message any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
					md, _ := metadata.FromIncomingContext(ctx)
					if strings.Contains(strings.Join(md["x-sub"], ","), "admin") || md["authorization"] != nil {
						t.Errorf("an interceptor sees %v", md)
					}
					return handler(metadata.NewIncomingContext(ctx, metadata.Join(md, metadata.Pairs("x-own", "1"))), message)
				})
				grpctest.ServeOn(t, network.Listen("10.0.0.1:80"), &grpctest.Service{
					Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
						md, _ := metadata.FromIncomingContext(ctx)
						if strings.Join(md["x-own"], ",") != "1" || strings.Join(md["x-mine"], ",") != "2" {
							t.Errorf("the handler sees %v, want what the interceptor and the caller have set", md)
						}
						return &grpctest.Response{Username: jwt.ClaimsOf(ctx).Subject() + strings.Join(md["x-sub"], ",") + strings.Join(md["authorization"], ",")}, nil
					},
				}, append(meshgrpc.ServerOptions(m), before)...)
				conn := grpctest.Dial(t, "passthrough:///10.0.0.1:80", grpc.WithContextDialer(
					func(ctx context.Context, address string) (net.Conn, error) {
						return network.DialContext(ctx, "tcp", address)
					}))
				client := grpctest.NewClient(conn)
				call := func(ctx context.Context, token string) (string, error) {
					reply, err := client.UnaryCall(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token, "x-sub", "admin", "x-mine", "2"), new(grpctest.Request))
					return reply.GetUsername(), err
				}
				// A call without a message never gets to where it could wait, and leaves nothing behind.
				unknown := third.Token(`{"iss":"i","sub":"bob"}`)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				err := silent(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+unknown), conn)
				cancel()
				if status.Code(err) != codes.DeadlineExceeded {
					t.Errorf("a call without a message: %v, want DeadlineExceeded", err)
				}
				fetch <- jwttest.KeySet(first)

				// Only so many may wait, since their messages are received before it is known who sends them, and half of the places are
				// not for one sender alone. Calls that keep their messages back keep their places no longer than others.
				for range 2 {
					time.Sleep(11 * time.Second)
					var waiting sync.WaitGroup
					for _, sender := range []struct {
						name string
						most int
					}{{"10.1.1.1", 32}, {"10.1.1.2", 16}, {"2001:db8::1", 8}, {"2001:db8:0:1::1", 4}} {
						ctx := metadata.AppendToOutgoingContext(t.Context(), "x-forwarded-for", sender.name)
						for range sender.most {
							waiting.Go(func() {
								if err := silent(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+unknown), conn); status.Code(err) != codes.Canceled {
									t.Errorf("a call whose message has not come when the keys have: %v, want Canceled", err)
								}
							})
						}
						synctest.Wait()
						began := time.Now()
						if _, err := call(ctx, unknown); status.Code(err) != codes.Unauthenticated || time.Since(began) > 0 {
							t.Errorf("one call more of %s than may wait: %v after %v, want Unauthenticated at once", sender.name, err, time.Since(began))
						}
					}
					fetch <- jwttest.KeySet(first)
					waiting.Wait()
				}
				// A call whose keys have come is decided about when its message comes.
				time.Sleep(11 * time.Second)
				desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
				late, err := conn.NewStream(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+fourth.Token(`{"iss":"i","sub":"eve"}`), "x-mine", "2"),
					desc, grpctest.UnaryMethod)
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				fetch <- jwttest.KeySet(first, fourth)
				synctest.Wait()
				var reply grpctest.Response
				if err := errors.Join(late.SendMsg(new(grpctest.Request)), late.CloseSend(), late.RecvMsg(&reply)); err != nil || reply.Username != "eveeve" {
					t.Errorf("a call whose message comes late got %q, %v", reply.Username, err)
				}

				known := first.Token(`{"iss":"i","sub":"alice"}`)
				for _, test := range []struct {
					name, token, set string // set is of the issuer, "" if it does not answer
					leaves           bool   // the caller does not wait
					want             codes.Code
				}{
					{"still unknown", second.Token(`{"iss":"i","sub":"bob"}`), jwttest.KeySet(first), false, codes.Unauthenticated},
					{"known by now", second.Token(`{"iss":"i","sub":"bob"}`), jwttest.KeySet(first, second), false, codes.OK},
					{"caller leaves", third.Token(`{"iss":"i","sub":"bob"}`), jwttest.KeySet(first), true, codes.Canceled},
					{"no answer", third.Token(`{"iss":"i","sub":"bob"}`), "", false, codes.Unauthenticated},
				} {
					time.Sleep(11 * time.Second) // an issuer is not asked more often
					ctx, cancel := context.WithCancel(t.Context())
					var user string
					var err error
					var waiting sync.WaitGroup
					waiting.Go(func() { user, err = call(ctx, test.token) })
					synctest.Wait()
					began := time.Now()
					if got, err := call(t.Context(), known); got != "alicealice" || err != nil || time.Since(began) > 0 {
						t.Errorf("%s: another call got %q, %v after %v", test.name, got, err, time.Since(began))
					}
					if test.leaves {
						cancel()
						waiting.Wait()
					}
					if test.set != "" {
						fetch <- test.set
					}
					waiting.Wait()
					cancel()
					if status.Code(err) != test.want || err == nil && user != "bobbob" {
						t.Errorf("%s: the call got %q, %v; want %v", test.name, user, err, test.want)
					}
				}
				synctest.Wait()
				if n := observed.open.Load(); n != 0 {
					t.Errorf("observers see no end of %d calls", n)
				}
			})
		})
	}
}
