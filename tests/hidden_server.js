// A hidden server in Node.js: node hidden_server.js ID.js, with the ID.js that users_app.py made.
'use strict'

var crypto = require('crypto')
  , http = require('http')
  , https = require('https')
  , path = require('path')

var params = require(path.resolve(process.argv[2])).params
var PAUSE = 1000 // milliseconds, after a failure

var server = http.createServer(function (request, response) {
  var length = 0

  request.socket.emit('taken')
  request.on('data', function (octets) { length += octets.length })
  request.on('end', function () { response.end(request.method + ' ' + length + ' octets\n') })
})

// RFC 4648 section 6, without padding
function base32 (text) {
  var octets = [], bits = 0, value = 0
  for (var letter of text) {
    value = (value << 5 | 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567'.indexOf(letter)) & 0xfff
    bits += 5
    if (bits >= 8) octets.push(value >> (bits -= 8) & 0xff)
  }
  return Buffer.from(octets)
}

// RFC 6238 and RFC 4226 section 5.3
function totp (authParams) {
  var counter = Buffer.alloc(8)
  counter.writeBigUInt64BE(BigInt(Math.floor(Date.now() / 1000 / authParams.step)))
  var hmac = crypto.createHmac(authParams.algorithm, base32(authParams.base32))
  hmac = hmac.update(counter).digest()
  var number = hmac.readUInt32BE(hmac[hmac.length - 1] & 0xf) & 0x7fffffff
  var digits = authParams.digits || 6
  return String(number % Math.pow(10, digits)).padStart(digits, '0')
}

function again () { setTimeout(register, PAUSE) }

function register () {
  var request = https.request({
    host: params.server.hostname,
    port: params.server.port,
    ca: params.server.ca,
    method: 'CONNECT',
    path: 'uuid:' + params.uuid[0] + '?response=' + totp(params.authParams),
    agent: false
  })
  request.on('connect', function (response, socket, head) {
    if (response.statusCode !== 200) {
      console.log('refused: ' + response.statusCode + ' ' + head)
      socket.destroy()
      return again()
    }
    console.log('registered')
    socket.on('error', function (error) { console.log(error.message) })
    socket.once('close', again)
    socket.once('taken', function () { socket.off('close', again); register() })
    if (head.length) socket.unshift(head)
    server.emit('connection', socket) // it speaks HTTP on it as on any that it accepted
  })
  request.on('error', function (error) { console.log(error.message); again() })
  request.end()
}

register()
