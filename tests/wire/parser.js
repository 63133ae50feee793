// What Node.js reads of a request goes back in a header, for tests/test_differential.py.
const read = ({ method, url, headers }) =>
  [method, url, headers['content-length'] ?? '-', headers['transfer-encoding'] ?? '-'].join(' ');

const answer = (request, response) => {
  response.setHeader('X-Read', read(request));
  request.resume().on('end', () => response.end());
};
const server = require('http').createServer(answer);
server.on('checkExpectation', answer);
// What comes behind is no HTTP any more.
server.on('upgrade', (request, socket) =>
  socket.on('error', () => {}).end(`HTTP/1.1 200 OK\r\nX-Read: ${read(request)}\r\n\r\n`));
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
