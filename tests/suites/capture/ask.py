# Connects without knowing of a proxy, and says what the kernel says of the connection.
# Arguments: address and port; then what to do: "say TEXT" sends it, "hear" only listens. Prints the peer's address, the
# original destination, and what comes until the end.
import errno, socket, struct, sys

address, port, action = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
connection = socket.socket(family, socket.SOCK_STREAM)
connection.settimeout(10)
connection.connect((address, port))
print("peer", *connection.getpeername()[:2])
level, length, place = (socket.SOL_IP, 16, 4) if family == socket.AF_INET else (socket.IPPROTO_IPV6, 28, 8)
try:
    answer = connection.getsockopt(level, 80, length)
    kind, = struct.unpack("=H", answer[:2])
    port, = struct.unpack("!H", answer[2:4])
    size = 4 if kind == socket.AF_INET else 16
    print("original", socket.inet_ntop(kind, answer[place : place + size]), port)
except OSError:
    # Nobody has led it anywhere.
    print("original none")
sys.stdout.flush()
try:
    if action[0] == "say":
        connection.sendall(action[1].encode())
        connection.shutdown(socket.SHUT_WR)
    while data := connection.recv(65536):
        print("heard", data.decode(errors="replace"))
    print("end")
except (BrokenPipeError, ConnectionResetError):
    print("reset")
except OSError as error:
    # The reset was there before it had said everything.
    print("reset" if error.errno == errno.ENOTCONN else error)
